//! What touches the outside: programs, processes, files. Each adapter stands alone.

pub mod cgroup;
pub mod etcd;
pub mod pki;
pub mod postgres;
pub mod proc;

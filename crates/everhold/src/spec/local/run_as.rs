//! Whom PostgreSQL runs as: ourselves, or the user `postgres` when we are root, since PostgreSQL
//! refuses to run as root.

use std::fs::{Metadata, read_to_string};
use std::os::unix::fs::MetadataExt;

use super::super::fault::{Code, Fault};

/// The user that PostgreSQL's packages create.
const USER: &str = "postgres";

/// A user as the system knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunAs {
    pub name: String,
    pub uid: u32,
    /// The first one is the user's own.
    pub gids: Vec<u32>,
    pub home: Option<String>,
}

impl RunAs {
    /// Ourselves, or [`USER`] when we are root.
    pub fn discover() -> Result<RunAs, Fault> {
        let uid = rustix::process::geteuid();
        let passwd = read_to_string("/etc/passwd").unwrap_or_default();
        let group = read_to_string("/etc/group").unwrap_or_default();
        if uid.is_root() {
            return RunAs::find(USER, &passwd, &group).ok_or_else(|| {
                let message = format!("run as root, and there is no user {USER} for PostgreSQL");
                Fault::of_machine(Code::NoUser, message)
            });
        }
        let raw = uid.as_raw();
        let entry = passwd.lines().find(|line| line.split(':').nth(2) == Some(&raw.to_string()));
        let name = entry.and_then(|line| line.split(':').next()).unwrap_or("this user").to_owned();
        let home = entry.and_then(|line| line.split(':').nth(5)).map(str::to_owned);
        let mut gids = vec![rustix::process::getegid().as_raw()];
        gids.extend(
            rustix::process::getgroups().unwrap_or_default().iter().map(|gid| gid.as_raw()),
        );
        Ok(RunAs { name, uid: raw, gids, home })
    }

    /// The user of that name, as the system's files have it.
    pub fn of_user(name: &str) -> Option<RunAs> {
        let passwd = read_to_string("/etc/passwd").unwrap_or_default();
        let group = read_to_string("/etc/group").unwrap_or_default();
        RunAs::find(name, &passwd, &group)
    }

    /// A user of the system's files.
    fn find(name: &str, passwd: &str, group: &str) -> Option<RunAs> {
        let entry: Vec<&str> = passwd
            .lines()
            .map(|line| line.split(':').collect())
            .find(|it: &Vec<_>| it[0] == name)?;
        let number = |index: usize| entry.get(index)?.parse::<u32>().ok();
        let mut gids = vec![number(3)?];
        for line in group.lines() {
            let fields: Vec<&str> = line.split(':').collect();
            if let [_, _, gid, members] = fields[..]
                && members.split(',').any(|member| member == name)
                && let Ok(gid) = gid.parse()
            {
                gids.push(gid);
            }
        }
        let home = entry.get(5).map(|home| (*home).to_owned());
        Some(RunAs { name: name.to_owned(), uid: number(2)?, gids, home })
    }

    /// Whether it is somebody else than we are.
    pub fn is_other(&self) -> bool {
        self.uid != rustix::process::geteuid().as_raw()
    }

    /// Whether it may pass through, by owner, group and mode; access lists are not looked at.
    pub fn may_enter(&self, directory: &Metadata) -> bool {
        let bit = if directory.uid() == self.uid {
            0o100
        } else if self.gids.contains(&directory.gid()) {
            0o010
        } else {
            0o001
        };
        self.uid == 0 || directory.mode() & bit != 0
    }
}

#[cfg(test)]
mod tests {
    use super::RunAs;

    #[test]
    fn users_of_the_system() {
        let passwd = "root:x:0:0::/root:/bin/sh\npostgres:x:101:104:,,,:/var/lib:/bin/sh\ntorn\n";
        let group = "postgres:x:104:\nssl-cert:x:110:www,postgres\nnot:x:111:postgresql\ntorn:\n";
        let found = RunAs::find("postgres", passwd, group);
        let (name, home) = ("postgres".into(), Some("/var/lib".into()));
        let expected = RunAs { name, uid: 101, gids: vec![104, 110], home };
        assert_eq!(found, Some(expected));
        assert_eq!(RunAs::find("torn", passwd, group), None);
        assert_eq!(RunAs::find("nobody", passwd, group), None);
    }
}

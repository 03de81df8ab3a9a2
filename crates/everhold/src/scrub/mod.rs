//! Live data read through for pages that are not as they were written: a process of its own beside
//! each PostgreSQL, at the lowest priority and a bounded rate.

mod care;
mod round;
mod scrubber;
mod state;

pub use care::start;
pub use scrubber::run;
pub use state::Word;

//! Processes of Everhold beside an agent or a coordinator: this very program in another role, told
//! and heard through pipes, ending when its stdin does.

use crate::log;
use serde::Serialize;
use std::io::Write;
use std::process::Stdio;
use tokio::process::Command;

/// A tenth of another's share. With the least that can be asked for, no backup would ever end on a
/// machine that is always busy.
const NICE: i32 = 10;

/// One in that role, also after the program's file was replaced. It ends with the value it becomes.
pub fn command(role: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("everhold").arg(role).env(log::VARIABLE, log::format().as_str());
    command.current_dir("/").kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

/// Says one word to whoever started this helper: a line of JSON. Nobody listens to one whose caller is
/// gone.
pub fn say(word: &impl Serialize) {
    let mut out = std::io::stdout().lock();
    let _ = serde_json::to_writer(&mut out, word).map(|()| out.write_all(b"\n"));
    let _ = out.flush();
}

/// Does that when stdin ends: nobody waits for this helper any more.
pub fn when_left(then: impl FnOnce() + Send + 'static) {
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        then();
    });
}

/// For a helper at its start: signals to its parent's terminal are not for it.
pub fn own_session() {
    // Fails only if this is the first process of a session already.
    let _ = rustix::process::setsid();
}

/// The same, and it stands back where others want the processor, and the disk where its scheduler goes
/// by that.
///
/// Where the kernel shares the processor out by session first (`sched_autogroup`), a nice process is
/// nice to its own session alone, and each of PostgreSQL's processes is one: so the session is made
/// nice too. See sched(7).
pub fn stand_back() {
    own_session();
    let _ = rustix::process::nice(NICE);
    let _ = std::fs::write("/proc/self/autogroup", NICE.to_string());
}

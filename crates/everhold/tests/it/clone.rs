//! Copies of standbys that are made from a repository, and from the leader when that has none.

use crate::backups::{first_backup, stack, vault};
use crate::stack::load::Load;
use crate::stack::{NODES, Stack, signal};
use std::fs;

/// A service's disk on a node is lost, with all that runs there, until there is a copy again. Whether
/// that was copied from a server, which leaves its list of files.
fn lose_disk(stack: &mut Stack, node: &str) -> bool {
    let away = stack.dir().join(format!("{node}.lost"));
    fs::rename(stack.data().join(node).join("main"), &away).expect("taken away");
    let mut pids = stack.pids_in(&away);
    pids.extend(stack.agent_pid(node));
    signal("KILL", &pids);
    let data = stack.data().join(node).join("main/pgdata");
    stack.wait("a copy", |_| data.join("PG_VERSION").exists());
    stack.whole();
    data.join("backup_manifest").exists()
}

fn journal(stack: &Stack) -> String {
    stack.done(&["journal", "--limit", "1000"])
}

#[test]
fn a_copy_is_made_from_the_repository_where_that_is_asked_for() {
    let mut stack = stack();
    first_backup(&mut stack);
    let spec = fs::read_to_string(stack.spec_file()).expect("the spec");
    fs::write(stack.spec_file(), format!("{spec}clone_from = \"repository\"\n")).expect("written");
    stack.done(&["apply", &stack.spec_file().display().to_string()]);
    let load = Load::start(stack.write_port(), &stack.password());
    load.flows();
    // The backup is of the branch before.
    let first = stack.leader();
    signal("KILL", &stack.postmaster(&first).into_iter().collect::<Vec<_>>());
    load.flows();
    stack.whole();

    let leader = stack.leader();
    let followers: Vec<&str> = NODES.into_iter().filter(|node| *node != leader).collect();
    let copied = lose_disk(&mut stack, followers[0]);
    assert!(journal(&stack).contains("a copy from backup"), "{}", journal(&stack));
    assert!(!copied, "{}", journal(&stack));
    load.flows();

    let gone = vault(&stack).with_extension("gone");
    fs::rename(vault(&stack), gone).expect("taken away");
    let copied = lose_disk(&mut stack, followers[1]);
    assert!(journal(&stack).contains("no copy from the repositories"), "{}", journal(&stack));
    assert!(copied);
    load.flows();
    assert_eq!(load.finish().lost, 0);
}

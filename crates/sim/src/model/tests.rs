//! The quick runs of the protocol hold, and each broken rule is found.

use super::plan::{Expect, Plan};
use super::runs;
use super::search::explore;

const STATES_MAX: u64 = 12_000_000;

fn check(plans: &[Plan]) {
    for plan in plans {
        let (outcome, _) = explore(plan, STATES_MAX);
        let found = outcome.violation.map(|violation| violation.text);
        match plan.expect {
            Expect::Safe => {
                assert_eq!(found, None, "{} ({})", plan.name, plan.about);
                assert!(outcome.complete, "{} is bounded to end", plan.name);
                assert!(outcome.reopened > 0, "{} never gets to a new leader", plan.name);
            }
            Expect::Violation => {
                assert!(found.is_some(), "{} ({}) is not found", plan.name, plan.about);
            }
        }
    }
}

#[test]
fn the_protocol_holds() {
    check(&runs::quick());
}

#[test]
fn each_broken_rule_is_found() {
    check(&runs::negative());
}

//! Nodes that are not heard because somebody doesn't believe a certificate, as `status` tells them.

use crate::link::{Link, Refusal};
use serde_json::{Value, json};

pub fn hold(link: &Link, refusal: Refusal, since: &str) -> Value {
    let Link { node, addr, .. } = link;
    let (rule, why, unblocks) = match refusal {
        Refusal::Foreign => (
            "foreign-node",
            format!("who answers at {addr} for {node} is of another cluster"),
            format!("{node} runs at that address, or the spec gets its right one"),
        ),
        Refusal::AnotherNode => (
            "foreign-node",
            format!("who answers at {addr} for {node} is another node of this cluster"),
            format!("{node} runs at that address, or the spec gets its right one"),
        ),
        Refusal::Ended => (
            "certificate-ended",
            format!("the certificate of {node} at {addr} has ended, or has not begun"),
            format!(
                "`everhold run` renews it on {node} (its status says why not), or a clock is set right"
            ),
        ),
        Refusal::OurEnded => (
            "certificate-ended",
            format!("{node} does not take this machine's certificate: it has ended"),
            "`everhold run` renews it on this machine, or a clock is set right".to_string(),
        ),
        Refusal::OurForeign => (
            "foreign-node",
            format!("{node} at {addr} does not believe this machine's certificate"),
            "both have certificates of one authority: compare DATA/pki/ca.pem on both".to_string(),
        ),
    };
    json!({
        "service": null, "rule": rule, "why": why, "since": since, "recheck_at": null,
        "evidence": [], "unblocks": unblocks, "needs_operator": true, "journal": null,
    })
}

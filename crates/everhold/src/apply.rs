//! A new revision of the spec: what a running cluster can't become.

use everhold_core::spec::{Change, Spec, TakesEffect, diff};

/// The changes that can't be made, each with what to do instead.
pub fn refused(changes: &[Change]) -> Vec<String> {
    let refused = changes.iter().filter_map(|change| match &change.takes_effect {
        TakesEffect::Refused { why } => Some(format!("{}: {why}", change.path)),
        TakesEffect::AtOnce | TakesEffect::Reload | TakesEffect::Restart => None,
    });
    refused.collect()
}

/// Refuses a spec that a running cluster can't become.
pub fn refuse_impossible(old: &Spec, new: &Spec) -> anyhow::Result<()> {
    let mut refused = refused(&diff(old, new));
    let portless = new.portless();
    refused.extend(portless.map(|(service, node)| format!("{service} finds no port on {node}")));
    anyhow::ensure!(
        refused.is_empty(),
        "E234 a running cluster can't make this change: {}; next step: leave it as it was, or do \
         what the reason says",
        refused.join("; ")
    );
    Ok(())
}

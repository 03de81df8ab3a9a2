//! A new revision of the spec: what changes, and what can't.

use everhold_core::spec::{Spec, TakesEffect, diff};

/// Refuses a spec that a running cluster can't become.
pub fn refuse_impossible(old: &Spec, new: &Spec) -> anyhow::Result<()> {
    let refused: Vec<String> = diff(old, new)
        .into_iter()
        .filter_map(|change| match change.takes_effect {
            TakesEffect::Refused { why } => Some(format!("{}: {why}", change.path)),
            _ => None,
        })
        .collect();
    anyhow::ensure!(refused.is_empty(), "E234 {}", refused.join("; "));
    Ok(())
}

//! Routes that a gateway serves otherwise than ever, as `status` shows them.

use crate::clock;
use crate::link::Hold;
use everhold_core::ids::Time;
use everhold_gateway::http::Guarded;

/// One for each route and mode.
pub fn holds(guarded: &Guarded, now: Time) -> Vec<Hold> {
    let mut holds = Vec::new();
    for ((_, route), modes) in &guarded.modes {
        for it in modes {
            let Some((cause, lasts)) = it.on else { continue };
            let since = Time(now.0.saturating_sub(lasts.as_millis() as u64));
            holds.push(Hold {
                service: Some(it.service.clone()),
                rule: "degraded".to_string(),
                why: format!("route {route} is {}: {}", it.mode.word(), cause.says()),
                unblocks: "that is over for a while; nobody need do anything".to_string(),
                operator: false,
                since: clock::wall_at(since),
                recheck_at: None,
                journal: None,
            });
        }
    }
    holds
}

#[cfg(test)]
mod tests {
    use super::*;
    use everhold_core::http::degrade::{Cause, Mode};
    use everhold_gateway::http::ModeState;
    use std::time::Duration;

    #[test]
    fn what_is_degraded_is_shown() {
        let mode = |mode, on| ModeState { mode, service: "api".to_string(), on };
        let modes = vec![
            mode(Mode::Stale, None),
            mode(Mode::ReadOnly, Some((Cause::Breaker, Duration::from_secs(5)))),
        ];
        let modes = [(("web".to_string(), "r".to_string()), modes)].into();
        let guarded = Guarded { modes, ..Guarded::default() };
        let holds = holds(&guarded, clock::now());
        let told =
            holds.iter().map(|it| (it.service.as_deref(), it.rule.as_str(), it.why.as_str()));
        let why = "route r is read_only: the service's breaker is open";
        assert_eq!(told.collect::<Vec<_>>(), [(Some("api"), "degraded", why)]);
        assert_eq!(super::holds(&Guarded::default(), clock::now()), []);
    }
}

//! Requests go where there is least to do, as nodes tell it.

use super::fixture::{FINE, Fixture, Instance, eventually};
use everhold_core::spec::Balance;
use std::collections::BTreeMap;

#[test]
fn the_least_loaded_instance_gets_requests_as_loads_are_told() {
    let instances = [Instance::says(FINE), Instance::says(FINE), Instance::says(FINE)];
    let gateway = Fixture::with(&instances.each_ref().map(|it| it.address), |service| {
        service.balance = Balance::LeastLoad;
    });
    let gets = |asked: usize| -> Vec<usize> {
        let before = instances.each_ref().map(|it| it.seen().len());
        for _ in 0..asked {
            assert_eq!(gateway.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").status, 200);
        }
        // An answer is read before the instance's thread goes on.
        let all = || instances.iter().zip(before).map(|(it, before)| it.seen().len() - before);
        eventually("all are counted", || all().sum::<usize>() == asked);
        all().collect()
    };
    let tell = |loads: &[(&str, u32)]| {
        let loads = loads.iter().map(|(name, load)| (name.to_string(), *load)).collect();
        gateway.gateway.set_loads(&BTreeMap::from([("main".to_string(), loads)]));
    };
    assert_eq!(gets(9), [3, 3, 3], "nothing was told");
    tell(&[("i0", 900), ("i1", 100), ("i2", 500)]);
    assert_eq!(gets(6), [0, 6, 0]);
    tell(&[("i0", 200), ("i1", 600)]);
    assert_eq!(gets(6), [6, 0, 0], "who is silent is not idle");
    tell(&[]);
    assert_eq!(gets(9), [3, 3, 3], "nobody tells");
}

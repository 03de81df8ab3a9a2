//! Which of several backends gets the next connection.

/// The index of the backend with the fewest connections.
///
/// `loads[i]` is the number of connections backend `i` has now, or `None` if it must not be used.
/// Equal loads are shared out by `turn`, a number the caller raises with each choice: without it
/// short connections would all go to the first backend, since at each of them all loads are zero.
pub fn least_connections(loads: &[Option<usize>], turn: usize) -> Option<usize> {
    let fewest = loads.iter().flatten().min()?;
    let ties = || loads.iter().enumerate().filter(|(_, load)| load.as_ref() == Some(fewest));
    let chosen = turn % ties().count();
    ties().nth(chosen).map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_loaded_usable_backend_is_chosen_and_ties_take_turns() {
        type Case = (&'static [Option<usize>], usize, Option<usize>);
        #[rustfmt::skip]
        let cases: &[Case] = &[
            (&[],                                0, None),
            (&[None, None],                      3, None),
            (&[Some(4), Some(2), Some(3)],       0, Some(1)),
            (&[Some(4), None, Some(3)],          0, Some(2)),
            (&[Some(1), Some(1), Some(9)],       0, Some(0)),
            (&[Some(1), Some(1), Some(9)],       1, Some(1)),
            (&[Some(1), Some(1), Some(9)],       2, Some(0)),
            (&[None, Some(0), Some(5), Some(0)], 1, Some(3)),
            (&[Some(0)],                usize::MAX, Some(0)),
        ];
        for (loads, turn, expected) in cases {
            assert_eq!(least_connections(loads, *turn), *expected, "{loads:?} turn {turn}");
        }
    }
}

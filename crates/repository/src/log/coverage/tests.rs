//! Pieces as words: `1.0:100-200@3` is 100 to 200 of timeline 1, branch of epoch 0, by the leader of
//! epoch 3.

use super::*;

fn piece(word: &str) -> Piece {
    let number = |text: &str| text.parse::<u64>().expect("a number");
    let (branch, rest) = word.split_once(':').expect("a branch");
    let (tli, branch_epoch) = branch.split_once('.').expect("its epoch");
    let (place, epoch) = rest.split_once('@').expect("a writer");
    let (start, end) = place.split_once('-').expect("a range");
    Piece {
        branch: BranchId { epoch: number(branch_epoch), tli: number(tli) as u32 },
        start: Lsn(number(start)),
        end: Lsn(number(end)),
        epoch: number(epoch),
    }
}

fn pieces(text: &str) -> Vec<Piece> {
    text.split_whitespace().map(piece).collect()
}

/// `1.0 3.2>1@200`: timeline 3 of epoch 2 left timeline 1 at 200.
fn line(text: &str) -> Vec<Branch> {
    let number = |text: &str| text.parse::<u64>().expect("a number");
    let branch = |word: &str| {
        let (id, from) = word.split_once('>').unwrap_or((word, "0@0"));
        let (tli, epoch) = id.split_once('.').expect("an epoch");
        let (parent, fork) = from.split_once('@').expect("a fork");
        Branch {
            tli: number(tli) as u32,
            epoch: number(epoch),
            parent: number(parent) as u32,
            fork: Lsn(number(fork)),
        }
    };
    text.split_whitespace().map(branch).collect()
}

fn ranges(of: &[Range<Lsn>]) -> String {
    of.iter().map(|it| format!("{}-{}", it.start.0, it.end.0)).collect::<Vec<_>>().join(" ")
}

#[test]
fn what_is_covered_of_a_line() {
    const FORKED: &str = "1.0 3.2>1@200";
    #[rustfmt::skip]
    let cases = [
        // line                    pieces                                            covered
        ("1.0",                    "",                                               ""),
        ("1.0",                    "1.0:0-100@1 1.0:100-200@1",                      "0-200"),
        ("1.0",                    "1.0:100-200@1 1.0:0-100@1 1.0:50-150@1",         "0-200"),
        ("1.0",                    "1.0:0-100@1 1.0:101-200@1",                      "0-100 101-200"),
        ("1.0",                    "1.0:0-400@1 1.0:100-200@1 1.0:400-401@1",        "0-401"),
        // A new leader ships the tail of the old branch, and then its own.
        (FORKED,                   "1.0:0-150@1 1.0:150-200@2 3.2:200-300@2",        "0-300"),
        // What the old one wrote beyond the fork counts for nothing.
        (FORKED,                   "1.0:0-250@1 3.2:230-300@2",                      "0-200 230-300"),
        (FORKED,                   "1.0:0-150@1 1.0:200-900@1",                      "0-150"),
        // A failed promotion's branch, and one of the same number in another history.
        (FORKED,                   "1.0:0-200@1 2.1:200-400@1 3.7:200-500@7",        "0-200"),
        // The same leader under a higher epoch.
        ("1.0",                    "1.0:0-100@1 1.0:100-200@4",                      "0-200"),
        // Bytes before the fork that stand in the new branch's file too.
        (FORKED,                   "3.2:100-300@2",                                  "200-300"),
        ("1.0 2.1>1@100 5.4>2@100", "1.0:0-100@1 2.1:100-150@1 5.4:100-120@4",       "0-120"),
    ];
    for (on, text, covered) in cases {
        assert_eq!(ranges(&coverage(&pieces(text), &line(on))), covered, "{text} on {on}");
    }
}

#[test]
fn what_is_missing_first() {
    #[rustfmt::skip]
    let cases = [
        // covered           from to   missing
        ("",                 0,   100, "0-100"),
        ("0-100",            0,   100, ""),
        ("0-100",            0,   101, "100-101"),
        ("0-100 150-200",    0,   300, "100-150"),
        ("0-100 150-200",    120, 300, "120-150"),
        ("0-100 150-200",    150, 300, "200-300"),
        ("0-100 150-200",    150, 160, ""),
        ("50-100",           0,   20,  "0-20"),
        ("50-100",           0,   200, "0-50"),
    ];
    for (text, from, to, expected) in cases {
        let covered: Vec<Range<Lsn>> = text
            .split_whitespace()
            .map(|range| {
                let (start, end) = range.split_once('-').expect("a range");
                Lsn(start.parse().expect("start"))..Lsn(end.parse().expect("end"))
            })
            .collect();
        let found: Vec<_> = missing(&covered, Lsn(from), Lsn(to)).into_iter().collect();
        assert_eq!(ranges(&found), expected, "{text} from {from} to {to}");
    }
}

#[test]
fn what_is_read() {
    #[rustfmt::skip]
    let cases = [
        // pieces                                              wanted      read, or !missing
        ("1.0:0-100@1 1.0:100-200@1",                          (50, 150),  "0:50-100 100:100-150"),
        ("1.0:0-100@1 1.0:0-150@1 1.0:50-200@1",               (0, 200),   "0:0-150 50:150-200"),
        ("1.0:0-900@1 3.2:200-300@2",                          (0, 300),   "0:0-200 200:200-300"),
        ("1.0:0-900@1 3.2:200-300@2",                          (0, 301),   "!300-301"),
        ("1.0:0-100@1 1.0:120-200@1",                          (0, 200),   "!100-120"),
        ("1.0:0-900@1",                                        (0, 300),   "!200-300"),
        ("",                                                   (7, 9),     "!7-9"),
        ("1.0:0-100@1",                                        (50, 50),   ""),
    ];
    for (text, (from, to), expected) in cases {
        let found = match plan(&pieces(text), &line("1.0 3.2>1@200"), Lsn(from)..Lsn(to)) {
            Ok(plan) => plan
                .iter()
                .map(|(piece, part)| {
                    format!("{}:{}", piece.start.0, ranges(std::slice::from_ref(part)))
                })
                .collect::<Vec<_>>()
                .join(" "),
            Err(gap) => format!("!{}", ranges(&[gap])),
        };
        assert_eq!(found, expected, "{text} {from}-{to}");
    }
}

#[test]
fn names_sort_by_place_and_come_back() {
    let all = pieces("1.0:5-16@1 1.0:16-256@1 1.0:256-4096@9 2.3:4096-9000@3 16.17:10-12@255");
    let names: Vec<String> = all.iter().map(Piece::name).collect();
    assert!(names.is_sorted(), "{names:?}");
    for (piece, name) in all.iter().zip(&names) {
        assert_eq!(Piece::parse(name), Some(*piece));
    }
    for bad in ["", "lines/0000000000000001", "1.0/1-2.3", &names[0][1..], &names[4].to_lowercase()]
    {
        assert_eq!(Piece::parse(bad), None, "{bad}");
    }
}

/// `count` pieces in a row of so many bytes each.
fn row(from: u64, count: u64, bytes: u64) -> Vec<Piece> {
    let one = |i| piece(&format!("1.0:{}-{}@1", from + i * bytes, from + (i + 1) * bytes));
    (0..count).map(one).collect()
}

#[test]
fn many_small_pieces_become_few_large_ones() {
    let check = |pieces: &[Piece], expected: &[(u64, usize)]| {
        let groups = gatherings(pieces);
        let of = |group: &Vec<Piece>| (gathered(group).expect("one").bytes(), group.len());
        assert_eq!(groups.iter().map(of).collect::<Vec<_>>(), expected);
        for group in groups {
            assert!(group.windows(2).all(|pair| pair[0].end == pair[1].start));
        }
    };
    let row = |count, bytes| row(0, count, bytes);
    check(&row(63, 100), &[]);
    check(&row(64, 100), &[(6_400, 64)]);
    check(&row(100, 5_000), &[(265_000, 53), (235_000, 47)]);
    check(
        &row(70, 1 << 20),
        &[(16 << 20, 16), (16 << 20, 16), (16 << 20, 16), (16 << 20, 16), (6 << 20, 6)],
    );
    check(&row(70, PIECE_BYTES_MAX), &[]);
    let mut broken = row(100, 100);
    broken.remove(50);
    check(&broken, &[]);
    // Two writers: each its own.
    let mut two = row(100, 100);
    two.iter_mut().skip(50).for_each(|piece| piece.epoch = 2);
    check(&two, &[]);
    // It ends: what was gathered is gathered again, until there is nothing to gather.
    let mut all = row(20_000, 2_000);
    for _ in 0..50 {
        for group in gatherings(&all) {
            all.retain(|piece| !group.contains(piece));
            all.extend(gathered(&group));
        }
    }
    assert!(all.len() < 2 * GATHER, "{}", all.len());
    assert_eq!(ranges(&coverage(&all, &line("1.0"))), "0-40000000");
}

#[test]
fn doubles_are_of_the_same_writer() {
    let check = |text: &str, expected: &str| {
        assert_eq!(doubled(&pieces(text)), pieces(expected), "{text}");
    };
    check("1.0:0-100@1 1.0:100-200@1", "");
    check("1.0:0-100@1 1.0:100-200@1 1.0:0-200@1", "1.0:0-100@1 1.0:100-200@1");
    check("1.0:0-200@1 1.0:150-250@1 1.0:200-240@1", "1.0:200-240@1");
    check("1.0:0-200@1 1.0:50-150@2 2.2:50-150@1", "");
}

#[test]
fn what_nothing_needs_goes_by_whole_segments() {
    let log = |from: Option<u64>, pieces: &[(u64, u64)]| keep::Log {
        from: from.map(Lsn),
        pieces: pieces.iter().map(|(start, stop)| (Lsn(*start), Lsn(*stop))).collect(),
    };
    let all = pieces("1.0:0-90@1 1.0:90-100@1 1.0:100-210@1 1.0:210-300@1 2.2:250-260@2");
    let check = |log: keep::Log, expected: &str| {
        assert_eq!(unneeded(&all, &log, 100), pieces(expected), "{log:?}");
    };
    check(log(None, &[]), "");
    check(log(Some(50), &[]), "");
    check(log(Some(150), &[]), "1.0:0-90@1 1.0:90-100@1");
    check(log(Some(299), &[]), "1.0:0-90@1 1.0:90-100@1");
    check(log(Some(300), &[]), "1.0:0-90@1 1.0:90-100@1 1.0:100-210@1 1.0:210-300@1 2.2:250-260@2");
    check(log(Some(300), &[(95, 99)]), "1.0:100-210@1 1.0:210-300@1 2.2:250-260@2");
}

#[test]
fn what_enough_places_have() {
    let ranges = |text: &str| -> Vec<Range<Lsn>> {
        let one = |word: &str| {
            let (start, end) = word.split_once('-').expect("a range");
            Lsn(start.parse().expect("a place"))..Lsn(end.parse().expect("a place"))
        };
        text.split_whitespace().map(one).collect()
    };
    #[rustfmt::skip]
    let cases = [
        // places                            copies  enough have
        (vec![],                             1,      ""),
        (vec!["0-50"],                       2,      ""),
        (vec!["0-50", "50-90"],              1,      "0-90"),
        (vec!["0-50", "50-90"],              2,      ""),
        (vec!["0-50 60-90", "40-70"],        2,      "40-50 60-70"),
        (vec!["0-50 60-90", "40-70"],        1,      "0-90"),
        (vec!["0-90", "10-40", "20-50"],     2,      "10-50"),
        (vec!["0-90", "10-40", "20-50"],     3,      "20-40"),
    ];
    for (places, copies, expected) in cases {
        let all: Vec<_> = places.iter().map(|text| ranges(text)).collect();
        let all: Vec<&[Range<Lsn>]> = all.iter().map(Vec::as_slice).collect();
        assert_eq!(at_least(&all, copies), ranges(expected), "{places:?} {copies}");
    }
}

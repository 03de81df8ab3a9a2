//! Which answers are kept, as a table.

use super::*;

/// A Saturday in 2026.
const NOW_S: i64 = 1_795_291_200;
const NOW: &str = "Date: Sat, 21 Nov 2026 20:00:00 GMT";

/// Fields as lines.
fn fields(text: &str) -> impl Iterator<Item = (&[u8], &[u8])> {
    text.split('|').filter(|it| !it.trim().is_empty()).map(|line| {
        let (name, value) = line.trim().split_once(": ").expect("a field");
        (name.as_bytes(), value.as_bytes())
    })
}

fn life(asked: &str, status: u16, said: &str, spec: &CacheSpec) -> Result<Life, Why> {
    let asked = Asked::of(fields(asked));
    Said::of(status, fields(said), NOW_S).life(&asked, spec, 0, NOW_S)
}

#[test]
fn what_may_be_shared_is_kept_and_nothing_else() {
    let spec = CacheSpec::default();
    let kept = |seconds: u64| Ok(seconds * 1_000);
    #[rustfmt::skip]
    let cases = [
        // The request, the answer, for how long it is fresh.
        ("",                        200, "Cache-Control: max-age=60",                           kept(60)),
        ("",                        200, "Cache-Control: max-age=60, s-maxage=5",               kept(5)),
        ("",                        200, "Cache-Control: s-maxage=60, max-age=5",               kept(60)),
        ("",                        200, "Cache-Control: max-age=60|Cache-Control: no-store",   Err(Why::NoStore)),
        ("",                        200, "Cache-Control: private, max-age=60",                  Err(Why::Private)),
        ("",                        200, "Cache-Control: private=\"x\", max-age=60",            Err(Why::Private)),
        ("",                        200, "Cache-Control: private, s-maxage=60",                 Err(Why::Private)),
        ("Cache-Control: no-store", 200, "Cache-Control: max-age=60",                           Err(Why::NoStore)),
        // Of one who shows who he is only what is said to be for all.
        ("Authorization: x",        200, "Cache-Control: max-age=60",                           Err(Why::Authorized)),
        ("Authorization: x",        200, "Cache-Control: max-age=60, public",                   kept(60)),
        ("Authorization: x",        200, "Cache-Control: max-age=60, must-revalidate",          kept(60)),
        ("Authorization: x",        200, "Cache-Control: max-age=60, proxy-revalidate",         Err(Why::Authorized)),
        ("Authorization: x",        200, "Cache-Control: s-maxage=60",                          kept(60)),
        ("Cookie: a=b",             200, "Cache-Control: max-age=60",                           kept(60)),
        ("",                        200, "Cache-Control: max-age=60|Set-Cookie: a=b",           Err(Why::SetsCookie)),
        ("",                        200, "Cache-Control: public, max-age=60|Set-Cookie: a=b",   Err(Why::SetsCookie)),
        ("",                        200, "Cache-Control: max-age=60|Vary: *",                   Err(Why::VariesByAll)),
        ("",                        200, "Cache-Control: max-age=60|Vary: a, *",                Err(Why::VariesByAll)),
        ("",                        200, "Cache-Control: max-age=60|Vary: a,b,c,d,e,f,g,h,i",   Err(Why::VariesByAll)),
        ("Origin: https://e",       200, "Cache-Control: max-age=60|Access-Control-Allow-Origin: https://e", Err(Why::ForOrigin)),
        ("Origin: https://e",       200, "Cache-Control: max-age=60|Access-Control-Allow-Origin: https://e|Vary: Origin", kept(60)),
        ("Origin: https://e",       200, "Cache-Control: max-age=60|Access-Control-Allow-Origin: *", kept(60)),
        // Statuses.
        ("",                        404, "Cache-Control: max-age=60",                           kept(60)),
        ("",                        302, "Cache-Control: max-age=60",                           kept(60)),
        ("",                        206, "Cache-Control: max-age=60",                           Err(Why::Status)),
        ("",                        304, "Cache-Control: max-age=60",                           Err(Why::Status)),
        ("",                        400, "Cache-Control: max-age=60",                           Err(Why::Status)),
        ("",                        431, "Cache-Control: max-age=60",                           Err(Why::Status)),
        ("",                        500, "Cache-Control: max-age=60",                           Err(Why::Status)),
        ("",                        401, "Cache-Control: no-store",                             Err(Why::Status)),
        ("",                        403, "Cache-Control: private|Set-Cookie: a=b",              Err(Why::Status)),
        ("Range: bytes=9-",         416, "Cache-Control: max-age=60",                           Err(Why::Status)),
        ("Range: bytes=0-",         200, "Cache-Control: max-age=60",                           kept(60)),
        ("Range: bytes=0-",         404, "Cache-Control: max-age=60",                           Err(Why::Status)),
        ("If-None-Match: \"a\"",    404, "Cache-Control: max-age=60",                           Err(Why::Status)),
        // How long: a date that is none is over.
        ("",                        200, "Date: Sat, 21 Nov 2026 20:00:00 GMT|Expires: Sat, 21 Nov 2026 20:01:00 GMT", kept(60)),
        ("",                        200, "Date: Sat, 21 Nov 2026 19:59:30 GMT|Expires: Sat, 21 Nov 2026 20:01:00 GMT", kept(90)),
        ("",                        200, "Expires: 0",                                          Err(Why::Stale)),
        ("",                        200, "Expires: 0|ETag: \"a\"",                              kept(0)),
        ("",                        200, "Expires: Sat, 21 Nov 2026 20:01:00 GMT|Expires: 0",   Err(Why::Stale)),
        ("",                        200, "Expires: 0|Expires: Sat, 21 Nov 2026 20:01:00 GMT",   Err(Why::Stale)),
        ("",                        200, "Cache-Control: max-age=5|Expires: Sat, 21 Nov 2026 20:01:00 GMT", kept(5)),
        ("",                        200, "Cache-Control: max-age=0",                            Err(Why::Stale)),
        ("",                        200, "Cache-Control: max-age=0|Last-Modified: Sat, 21 Nov 2026 19:00:00 GMT", kept(0)),
        ("",                        200, "Cache-Control: max-age=0, stale-if-error=5",          kept(0)),
        ("",                        200, "Cache-Control: no-cache",                             Err(Why::Stale)),
        ("",                        200, "Cache-Control: no-cache|ETag: \"a\"",                 kept(0)),
        ("",                        200, "Cache-Control: max-age=60|Age: 60",                   Err(Why::Stale)),
        // A tenth of the time since it changed, at most a day.
        ("",                        200, "",                                                    Err(Why::NoLife)),
        ("",                        200, "ETag: \"a\"",                                         Err(Why::NoLife)),
        ("",                        200, "Last-Modified: Sat, 21 Nov 2026 19:50:00 GMT",        kept(60)),
        ("",                        200, "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT",        kept(86_400)),
        ("",                        200, "Last-Modified: Sat, 21 Nov 2026 21:00:00 GMT",        Err(Why::NoLife)),
        ("",                        302, "Last-Modified: Sat, 21 Nov 2026 19:50:00 GMT",        Err(Why::NoLife)),
        ("Cookie: a=b",             200, "Last-Modified: Sat, 21 Nov 2026 19:50:00 GMT",        Err(Why::Cookie)),
        ("Cookie: a=b",             200, "",                                                    Err(Why::NoLife)),
        // What is said for such caches counts alone.
        ("",                        200, "CDN-Cache-Control: max-age=9|Cache-Control: no-store",    kept(9)),
        ("",                        200, "CDN-Cache-Control: no-store|Cache-Control: max-age=9",    Err(Why::NoStore)),
        ("",                        200, "CDN-Cache-Control: max-age=x|Cache-Control: max-age=9",   kept(9)),
        ("",                        200, "CDN-Cache-Control: public|Expires: Sat, 21 Nov 2026 20:01:00 GMT", Err(Why::NoLife)),
    ];
    for (asked, status, said, expected) in cases {
        let got = life(asked, status, said, &spec).map(|it| it.fresh_ms);
        assert_eq!(got, expected, "{asked:?} {status} {said:?}");
    }
}

#[test]
fn the_spec_says_what_an_answer_does_not() {
    let spec = CacheSpec {
        ttl_ms: Some(7_000),
        stale_while_revalidate_ms: 2_000,
        stale_if_error_ms: 3_000,
        ..CacheSpec::default()
    };
    let kept = |fresh: u64, meanwhile: u64, on_error: u64| Ok((fresh, meanwhile, on_error));
    #[rustfmt::skip]
    let cases = [
        // Fresh, good while it is asked for anew, good on an error; in seconds.
        ("",             200, "",                                                       kept(7, 2, 3)),
        ("",             404, "",                                                       kept(7, 2, 3)),
        ("Cookie: a=b",  200, "",                                                       Err(Why::Cookie)),
        ("",             200, "Set-Cookie: a=b",                                        Err(Why::SetsCookie)),
        ("",             302, "",                                                       Err(Why::NoLife)),
        ("",             200, "Cache-Control: max-age=9",                               kept(9, 2, 3)),
        ("",             200, "Cache-Control: max-age=9, stale-while-revalidate=1, stale-if-error=4", kept(9, 1, 4)),
        ("",             200, "Cache-Control: max-age=9, stale-if-error=0",             kept(9, 2, 0)),
        ("",             200, "Cache-Control: max-age=9, must-revalidate, stale-if-error=4", kept(9, 0, 0)),
        ("",             200, "Cache-Control: max-age=9, proxy-revalidate",             kept(9, 0, 0)),
        ("",             200, "Cache-Control: s-maxage=9",                              kept(9, 0, 0)),
        ("",             200, "Cache-Control: s-maxage=9, stale-while-revalidate=1",    kept(9, 1, 0)),
        ("",             200, "Cache-Control: no-cache|ETag: \"a\"",                    kept(0, 0, 0)),
    ];
    for (asked, status, said, expected) in cases {
        let got = life(asked, status, said, &spec);
        let got =
            got.map(|it| (it.fresh_ms / 1_000, it.meanwhile_ms / 1_000, it.on_error_ms / 1_000));
        assert_eq!(got, expected, "{asked:?} {status} {said:?}");
    }
}

#[test]
fn an_answer_has_an_age_as_it_comes() {
    #[rustfmt::skip]
    let cases = [
        (NOW,                                               0,     0),
        ("",                                                250,   250),
        ("Date: Sat, 21 Nov 2026 19:59:58 GMT",             250,   2_000),
        ("Date: Sat, 21 Nov 2026 20:09:00 GMT",             250,   250),
        ("Age: 5",                                          250,   5_250),
        ("Age: 5|Age: 7",                                   0,     7_000),
        ("Age: -1",                                         0,     0),
        ("Age: 1|Date: Sat, 21 Nov 2026 19:59:58 GMT",      250,   2_000),
    ];
    for (said, delay_ms, expected) in cases {
        let said_ = format!("{said}|Cache-Control: max-age=60");
        let said_ = Said::of(200, fields(&said_), NOW_S);
        let life = said_.life(&Asked::default(), &CacheSpec::default(), delay_ms, NOW_S);
        assert_eq!(life.map(|it| it.age_ms), Ok(expected), "{said}");
    }
}

//! Every kind of error that somebody can see: a code that never changes its meaning, a next step, and
//! a section in `docs/errors/`.

use axum::http::StatusCode;
use serde::{Serialize, Serializer};

macro_rules! codes {
    ($($name:ident $code:literal $($status:ident)? $title:literal $next:literal;)*) => {
        /// A kind of error. E0xx: the document; E1xx: this machine; E2xx: what runs; E3xx: answers of
        /// the API.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Code { $($name),* }

        impl Code {
            /// Every code, in order.
            pub const ALL: &[Code] = &[$(Code::$name),*];

            pub fn as_str(self) -> &'static str {
                match self { $(Code::$name => $code),* }
            }

            /// The heading of its section in `docs/errors/`.
            #[cfg(test)]
            pub fn title(self) -> &'static str {
                match self { $(Code::$name => $title),* }
            }

            /// What to do about it, where the error itself does not know better.
            pub fn next(self) -> &'static str {
                match self { $(Code::$name => $next),* }
            }

            /// Of an answer of the API with it. Those that it never answers with have none.
            pub fn status(self) -> StatusCode {
                let status: Option<StatusCode> = match self {
                    $(Code::$name => [$(StatusCode::$status)?].first().copied()),*
                };
                status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
            }
        }
    };
}

codes! {
    Syntax "E001" "not TOML" "correct the line; the rest of the document is read once it parses";
    DuplicateKey "E002" "key given twice" "keep one of the two";
    UnknownKey "E003" "unknown key" "see docs/spec.md for the keys there are";
    NotYet "E004" "known, but not supported by this version"
        "take it out; this version runs without it";
    WrongType "E005" "wrong type" "see docs/spec.md for the form of each value";
    Missing "E006" "key missing" "add the key";
    OutOfRange "E007" "value not allowed" "choose an allowed value";
    BadName "E008" "name not allowed"
        "choose a name of 1 to 31 letters a-z, digits, _ or -, with a letter first";
    NameTaken "E009" "name taken" "choose another name";
    BadDuration "E010" "not a duration"
        "write a whole number with a unit: ms, s, m or h, as in \"500ms\"";
    BadAddress "E011" "not an address or port range" "see docs/spec.md for the form of each value";
    UnknownReference "E012" "no such node or service" "declare it, or name one that is declared";
    Repeated "E013" "named twice" "name it once";
    PortCollision "E014" "ports collide" "give each its own port or range";
    TooFewStandbys "E015" "more synchronous standbys than standbys"
        "lower `synchronous.number` or add nodes";
    CannotSpread "E016" "nothing to spread over"
        "give every node of the service the key, with two values or more";
    UnsupportedVersion "E017" "version not supported" "use a version that this Everhold runs";
    NewerSchema "E018" "schema not supported" "use an Everhold that knows this schema";
    Count "E019" "too few or too many" "see docs/spec.md for the limits";
    UnknownSetting "E020" "no such PostgreSQL setting" "correct the name, or take it out";
    BadSetting "E021" "value PostgreSQL would refuse" "correct the value";
    OurSetting "E022" "setting that Everhold decides" "take it out";
    WeakSetting "E023" "setting that weakens a guarantee" "take it out, or choose an allowed value";
    ApiExposed "E024" "API beyond this machine"
        "bind it to a loopback address, and reach it through ssh or a proxy with TLS";
    NoCandidate "E025" "nobody may become primary"
        "leave `failover` on for the first node and one more";
    NotApplicable "E026" "key without effect here" "take it out";
    Unreadable "E027" "spec cannot be read" "check the path and its permissions";
    StoreExposed "E028" "store in the clear" "use https, or an etcd on a loopback address";
    BadSchedule "E029" "not a schedule"
        "write minute, hour, day, month and weekday in UTC, as in \"0 2 * * *\"";
    WrongKind "E030" "service or listener of another kind" "name one of the kind that is wanted";
    UnknownWord "E031" "word in braces that stands for nothing"
        "write {port}, {instance}, {node}, {dsn:SERVICE} or {url:LISTENER}, or take the braces out";
    TiedRoutes "E032" "routes that match the same requests"
        "make one match more closely, or take one out";

    DataNotWritable "E101" "data directory not writable"
        "make it writable, or choose another one with --data";
    DataForeign "E102" "not an Everhold data directory"
        "choose an empty or new directory with --data";
    OtherCluster "E103" "data of another cluster"
        "choose another directory with --data, or use the spec of that cluster";
    NewerRecord "E104" CONFLICT "written by a newer version"
        "use that version or a later one; nothing was touched";
    TornRecord "E105" CONFLICT "record cannot be read"
        "restore the file from a copy, or move the directory away; nothing was touched";
    OtherMajor "E106" "data of another PostgreSQL version"
        "declare that version, or choose another directory with --data";
    Unreachable "E107" "PostgreSQL's user cannot reach the data"
        "choose a directory that every user may enter, such as one under /var/lib";
    WrongOwner "E108" "wrong owner or mode"
        "correct it with chown and chmod; PostgreSQL refuses to start otherwise";
    MissingProgram "E109" "program missing" "install it, or run `make up`, which does";
    WrongProgram "E110" "program of another version" "install the version that the spec declares";
    SocketPath "E111" "socket path too long" "choose a shorter directory with --data";
    PortTaken "E112" "port taken" "end the other program, or choose another port";
    NotOurAddress "E113" "address of another machine"
        "use an address of this machine, or start this node where the address is";
    NoUser "E114" "no unprivileged user"
        "install PostgreSQL from the distribution, which creates it, or do not run as root";
    PortForbidden "E115" "port not permitted"
        "choose a port above 1023, or grant the right to bind it";

    RecordUnusable "E201" "record of a node can't be used"
        "restore it from a backup of this node, or run the version that wrote it";
    RecordMissing "E202" "record of a node missing"
        "restore it, or move the data directory away, so that the node is cloned anew";
    RecordUnreadable "E203" "record of a node unreadable"
        "mend the disk; the agent tries again";
    JournalDamaged "E204" "journal damaged"
        "restore the file from a copy, or move the journal away and end the agent";
    BadPages "E205" "bad pages"
        "`everhold switchover` if the leader has them; a standby is copied anew by itself";
    Certificate "E210" "certificate can't be used"
        "restore the file that is named, or move it and its key away for `everhold up` to make anew";
    AgentPort "E211" "port of an agent or gateway taken" "end the process that has this port";
    PlainPort "E212" "port for health paths and metrics taken"
        "end the process that has this port; the rest works meanwhile";
    NodeFile "E220" "node file can't be used"
        "correct it; under `everhold up` it is written anew at each start";
    NotANode "E221" "not a node of the spec" "add the node and `everhold apply`";
    Unresolved "E222" "host name does not resolve" "use an IP address, or mend the resolver";
    ListenerPort "E223" "listener can't be opened"
        "end the process that has the address, or declare another one";
    NoCluster "E230" "no running cluster found"
        "`everhold up`, or name the directory with --data";
    InUse "E231" "data directory in use" "`everhold status`, or end the other one with Ctrl-C";
    RacedAtStart "E232" "spec changed meanwhile" "try again";
    ApiPort "E233" "API's port taken"
        "end the process that has it, or declare another one as `[api] bind`";
    ChangeAtStart "E234" "change a running cluster can't make"
        "leave it as it was, or do what the reason says";
    NoAnswer "E235" "API does not answer" "`everhold up --data DIR` takes everything over";
    TokenUnreadable "E236" "token can't be read" "run this as the user that runs `everhold up`";
    NotOurApi "E237" "not the API of an Everhold"
        "see what listens there, or name the cluster with --data";
    PasswordUnreadable "E238" "password can't be read"
        "run this as the user that runs `everhold up`";
    NoPsql "E239" "psql not found" "install postgresql-client, or use `everhold dsn`";
    NoSpecCopy "E240" "no copy of the spec" "join again as a replacement";
    HasCluster "E241" "part of a cluster already" "`everhold run`";
    ForeignData "E242" "data of another cluster" "choose another directory with --data";
    NoSuchNode "E243" "no such node" "choose a node of the spec with --node";
    NotStoreNode "E244" "no member of the store" "begin on a node that keeps the store";
    ForeignStore "E245" "another cluster's store" "choose another directory with --data";
    BadJoinToken "E246" "token not valid" "`everhold token NODE` makes a new one";
    TwoMachines "E247" "another machine has that name"
        "`everhold token NODE --replace`, if it is gone for good";
    NotAToken "E248" "not a token" "copy the whole line that `everhold token` printed";
    NoHost "E249" "cluster out of reach" "see that `everhold run` runs there";
    StoreTooOld "E250" "etcd too old" "use etcd 3.4 or later";
    BadCopy "E251" "copy of the store can't be used" "name an older copy, or one of another machine";
    StoreIsThere "E252" "store is there" "`everhold status` says what it waits for";
    Unproven "E253" "not proven that nothing is lost"
        "start the agent of every node, and restore again";
    StoreAway "E254" "etcd out of reach" "see that it runs, and that the files of [store] are right";
    TwoAsOne "E255" "two machines with one name" "end the one that is too many";
    NoNode "E260" "no node any more" "delete its data when nobody needs it";
    RolloutStopped "E261" "rollout stopped" "`everhold status` says how things stand";
    NotLaunched "E268" "instance not started"
        "mend the command, directory or user of the service, and apply";
    NotRoot "E270" "not root" "run it with sudo";
    NoSystemd "E271" "no systemd" "copy the program, and have it started as services are here";
    OfPackage "E272" "file of a package" "use apt, or choose another --prefix";
    StillRuns "E273" "still runs" "`systemctl disable --now everhold`";
    CannotInstall "E274" "cannot install" "mend what is named, then again";
    RepositoryAway "E280" SERVICE_UNAVAILABLE "repository out of reach" "mend what is named; nothing was lost";
    RepositoryMissing "E281" SERVICE_UNAVAILABLE "no repository there"
        "`everhold repository init` makes it; if it was made before, mount it";
    RepositoryKey "E282" SERVICE_UNAVAILABLE "password can't be used" "correct the file that key_file names";
    RepositoryForeign "E283" SERVICE_UNAVAILABLE "another repository" "declare another place, or use that cluster's";
    RepositoryUnfit "E284" SERVICE_UNAVAILABLE "store without conditional writes"
        "use a store that honours If-None-Match, or a directory";
    RepositoryDamaged "E285" SERVICE_UNAVAILABLE "damage in a repository"
        "`everhold repository check`; a second repository heals it";
    NoBackup "E286" NOT_FOUND "no backup for that" "`everhold backup list SERVICE` shows what there is";
    TargetUnknown "E287" "point that can't be restored"
        "choose a point that `everhold backup list SERVICE` shows as covered";
    RestoreTo "E288" "directory can't be restored into" "name an empty or new directory";
    BackupFailed "E289" "no backup was made" "mend what is named; the schedule tries again";
    NotForgotten "E290" SERVICE_UNAVAILABLE "backups are not forgotten"
        "mend what is named; nothing that is needed is gone";
    ProofFailed "E291" "backup failed its proof"
        "`everhold backup list SERVICE` names the others; make a full one now";
    NotProven "E292" "no proof was made" "mend what is named; it is tried again";
    BackupsHeld "E293" CONFLICT "backups of a service without data"
        "`everhold recover SERVICE` brings it back";
    RecoveryFailed "E294" "no recovery" "mend what is named and ask again; nothing was changed";
    CopyNotWhole "E295" "copy of a repository not whole"
        "run the same `everhold repository copy` again: it goes on";
    NoToken "E301" UNAUTHORIZED "token missing or wrong"
        "send `Authorization: Bearer TOKEN` with the token of DATA/secrets/api.token";
    UnknownPath "E302" NOT_FOUND "no such path" "GET /openapi.json lists the paths there are";
    WrongMethod "E303" METHOD_NOT_ALLOWED "method not allowed"
        "GET /openapi.json lists the methods of each path";
    Malformed "E304" BAD_REQUEST "request not understood"
        "GET /openapi.json shows what this path takes";
    TooLarge "E305" PAYLOAD_TOO_LARGE "request too large" "send less than 1 MiB";
    UnknownName "E306" NOT_FOUND "no such service, node or entry" "`everhold status` names them";
    Refused "E307" CONFLICT "refused as things stand" "`everhold status` says how things stand";
    OutOfReach "E308" SERVICE_UNAVAILABLE "store or agent out of reach"
        "`everhold status` says who is there; try again when they are";
    NotInTime "E309" GATEWAY_TIMEOUT "not done in time"
        "`everhold status` and `everhold journal` say how far it came; it may still be done";
    ForeignHost "E310" FORBIDDEN "host name not allowed"
        "address the API as 127.0.0.1, [::1] or localhost";
    Internal "E311" INTERNAL_SERVER_ERROR "broken inside"
        "report it with the message; nothing else is known";
    NeedsToken "E312" CONFLICT "forced failover to be confirmed"
        "repeat the request with the token if that loss is accepted";
    NeedsForce "E313" CONFLICT "fault beyond what the service survives"
        "heal first, or repeat it with `force` if an outage is wanted";
    SpecFaults "E314" UNPROCESSABLE_ENTITY "spec with faults" "correct the faults listed";
    SpecChange "E315" CONFLICT "change a running cluster can't make"
        "the reasons say what to do instead";
    SpecRaced "E316" CONFLICT "spec changed meanwhile" "look at the new one and try again";
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

/// The code that a text begins with, and the rest of it.
pub fn split(text: &str) -> Option<(Code, &str)> {
    let (first, rest) = text.split_once(' ')?;
    let code = Code::ALL.iter().find(|code| code.as_str() == first)?;
    Some((*code, rest))
}

/// One line about an error, as compilers write them: `PLACE: CODE message; next step: what to do`.
/// What was read from a document may hold line ends; they are shown.
pub fn line(place: Option<&str>, code: &str, message: &str, next: &str) -> String {
    let place = place.map(|place| format!("{place}: ")).unwrap_or_default();
    let next = if next.is_empty() { String::new() } else { format!("; next step: {next}") };
    let line = format!("{place}{code} {message}{next}");
    line.trim_start().replace('\r', "\\r").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::{Path, PathBuf};

    fn docs() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors")
    }

    fn read(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    #[test]
    fn a_line_has_place_code_and_next_step_and_is_one() {
        let check = |place, message, next, expected: &str| {
            assert_eq!(line(place, "E003", message, next), expected);
        };
        check(Some("f:1:2"), "no such key", "see", "f:1:2: E003 no such key; next step: see");
        check(None, "no such key", "", "E003 no such key");
        check(None, "no\nsuch\r\nkey", "a\nb", "E003 no\\nsuch\\r\\nkey; next step: a\\nb");
        assert_eq!(line(None, "", "no reason", ""), "no reason");
        assert_eq!(split("E003 no such key"), Some((Code::UnknownKey, "no such key")));
        for other in ["E003", "E999 x", "e003 x", "no E003 x", ""] {
            assert_eq!(split(other), None, "{other}");
        }
        assert_eq!(Code::Malformed.status(), StatusCode::BAD_REQUEST);
        assert_eq!(Code::UnknownKey.status(), StatusCode::INTERNAL_SERVER_ERROR);
    }

    #[test]
    fn every_code_is_explained_and_nothing_else_is() {
        let index = read(&docs().join("README.md"));
        let rows: Vec<&str> = index.lines().filter(|line| line.starts_with("| E")).collect();
        assert_eq!(rows.len(), Code::ALL.len(), "as many rows as codes");
        let mut last = "";
        for (code, row) in Code::ALL.iter().zip(rows) {
            let (text, title) = (code.as_str(), code.title());
            assert!(last < text, "{text} is not in order");
            last = text;
            assert!(row.starts_with(&format!("| {text} | {title} | [")), "{text}: {row}");
            let page = row.split_once("](").and_then(|(_, rest)| rest.split('#').next());
            let page = read(&docs().join(page.expect("link")));
            let heading = format!("## {text} {title}");
            assert!(page.lines().any(|line| line == heading), "no heading `{heading}`");
        }
    }

    /// A code in the text of a program is one that somebody may see.
    #[test]
    fn every_code_in_the_sources_is_in_the_list() {
        let mut directories = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
        let mut codes = BTreeSet::new();
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).expect("readable").flatten() {
                let path = entry.path();
                if path.is_dir() {
                    directories.push(path);
                } else if path.extension().is_some_and(|ending| ending == "rs") {
                    let text = read(&path);
                    codes.extend(text.split("\"E").skip(1).filter_map(|after| {
                        let code = after.get(..3)?;
                        let ends = after[3..].starts_with([' ', '"']);
                        let digits = code.bytes().all(|b| b.is_ascii_digit());
                        (ends && digits).then(|| format!("E{code}"))
                    }));
                }
            }
        }
        // The one that the test above takes for unknown.
        codes.remove("E999");
        let known: BTreeSet<String> = Code::ALL.iter().map(|it| it.as_str().to_string()).collect();
        assert_eq!(codes, known, "left: in the sources, right: in the list");
    }
}

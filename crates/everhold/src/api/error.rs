//! What the API answers when it can't do what it was asked: a code with a page, what was tried on
//! whom, and a next step.

use crate::cluster::ClusterError;
use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

macro_rules! codes {
    ($($name:ident $code:literal $status:ident $title:literal $next:literal;)*) => {
        /// A kind of error. Each has a section in `docs/errors/api.md`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Code { $($name),* }

        impl Code {
            /// Every code, in order.
            #[cfg(test)]
            pub const ALL: &[Code] = &[$(Code::$name),*];

            pub fn as_str(self) -> &'static str {
                match self { $(Code::$name => $code),* }
            }

            pub fn status(self) -> StatusCode {
                match self { $(Code::$name => StatusCode::$status),* }
            }

            /// The heading of its section.
            #[cfg(test)]
            pub fn title(self) -> &'static str {
                match self { $(Code::$name => $title),* }
            }

            /// What to do about it, where nothing better is known.
            pub fn next(self) -> &'static str {
                match self { $(Code::$name => $next),* }
            }
        }
    };
}

codes! {
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

/// An error answer.
#[derive(Debug)]
pub struct ApiError {
    code: Code,
    message: String,
    next: Option<String>,
    more: Map<String, Value>,
}

impl ApiError {
    pub fn new(code: Code, message: impl Into<String>) -> ApiError {
        ApiError { code, message: message.into(), next: None, more: Map::new() }
    }

    /// The same with a better next step.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> ApiError {
        self.next = Some(next.into());
        self
    }

    /// The same with one more key beside code, message and next step.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> ApiError {
        self.more.insert(key.to_string(), value.into());
        self
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let next = self.next.unwrap_or_else(|| self.code.next().to_string());
        let mut error = json!({
            "code": self.code.as_str(), "message": self.message, "next": next,
        });
        if let Some(object) = error.as_object_mut() {
            object.extend(self.more);
        }
        (self.code.status(), Json(json!({ "error": error }))).into_response()
    }
}

impl From<ClusterError> for ApiError {
    fn from(error: ClusterError) -> ApiError {
        let code = match &error {
            ClusterError::UnknownNode { .. } => Code::UnknownName,
            ClusterError::Unreached(_) | ClusterError::Store(_) => Code::OutOfReach,
            ClusterError::NoAnswer { .. } => Code::NotInTime,
            ClusterError::Refused { .. } => Code::Refused,
            ClusterError::Changed => Code::SpecRaced,
            ClusterError::Record(_) => Code::Internal,
        };
        ApiError::new(code, error.to_string())
    }
}

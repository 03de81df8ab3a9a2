//! What the API answers when it can't do what it was asked: a code with a page, what was tried on
//! whom, and a next step.

use crate::cluster::ClusterError;
use crate::code::{self, Code};
use axum::Json;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

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

impl ApiError {
    /// From an error's text, `CODE what was tried; next step: what to do`.
    pub fn of_text(text: &str) -> ApiError {
        let Some((code, rest)) = code::split(text) else {
            return ApiError::new(Code::Internal, text);
        };
        match rest.split_once("; next step: ") {
            Some((what, next)) => ApiError::new(code, what).next(next),
            None => ApiError::new(code, rest),
        }
    }

    /// `{ "error": … }`
    pub fn body(self) -> Value {
        let next = self.next.unwrap_or_else(|| self.code.next().to_string());
        let mut error = json!({
            "code": self.code.as_str(), "message": self.message, "next": next,
        });
        if let Some(object) = error.as_object_mut() {
            object.extend(self.more);
        }
        json!({ "error": error })
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.code.status(), Json(self.body())).into_response()
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
            ClusterError::Unreadable(why) => match code::split(why) {
                Some((code, what)) => return ApiError::new(code, what),
                None => Code::Internal,
            },
            ClusterError::Record(_) => Code::Internal,
        };
        ApiError::new(code, error.to_string())
    }
}

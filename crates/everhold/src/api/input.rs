//! What requests carry, read so that everything wrong with it becomes an error of the API.

use super::{ApiError, Code};
use axum::RequestPartsExt;
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_LENGTH;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

/// The largest body: a spec of dozens of services is a hundredth of it.
pub const BODY_BYTES_MAX: usize = 1 << 20;
/// Names in requests are shown and journaled; longer ones are cut.
const WHO_LENGTH_MAX: usize = 64;

/// The body as it came.
pub struct Text(pub String);

/// A JSON body; an empty one is `{}`.
pub struct Body<T>(pub T);

/// The parameters behind `?`.
pub struct Params<T>(pub T);

/// The name in the path.
pub struct Name(pub String);

/// Who asks, for the journal: what the client says, since the token names nobody.
pub struct Who(pub String);

fn malformed(message: impl Into<String>) -> ApiError {
    ApiError::new(Code::Malformed, message)
}

async fn body(request: Request) -> Result<Bytes, ApiError> {
    let too_large =
        || ApiError::new(Code::TooLarge, format!("the body is over {BODY_BYTES_MAX} bytes"));
    let told = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if told.and_then(|text| text.parse::<u64>().ok()).is_some_and(|n| n > BODY_BYTES_MAX as u64) {
        return Err(too_large());
    }
    let read = axum::body::to_bytes(request.into_body(), BODY_BYTES_MAX).await;
    read.map_err(|error| {
        let limit = std::error::Error::source(&error).map(ToString::to_string);
        match limit.is_some_and(|text| text.contains("length limit")) {
            true => too_large(),
            false => malformed(format!("the body can't be read: {error}")),
        }
    })
}

impl<S: Send + Sync> FromRequest<S> for Text {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let bytes = body(request).await?;
        let text = String::from_utf8(bytes.into());
        text.map(Text).map_err(|_| malformed("the body is not UTF-8 text"))
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let bytes = body(request).await?;
        let text: &[u8] = if bytes.iter().all(u8::is_ascii_whitespace) { b"{}" } else { &bytes };
        let read = serde_json::from_slice(text);
        read.map(Body).map_err(|error| malformed(format!("the body: {error}")))
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Send + 'static> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let read = parts.extract::<Query<T>>().await;
        read.map(|Query(value)| Params(value)).map_err(|error| malformed(error.body_text()))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let read = parts.extract::<Path<String>>().await;
        read.map(|Path(name)| Name(name)).map_err(|error| malformed(error.body_text()))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Who {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Ok(Who(who(&parts.headers)))
    }
}

fn who(headers: &HeaderMap) -> String {
    let told = headers.get("everhold-user").and_then(|value| value.to_str().ok());
    let told = told.unwrap_or("api");
    told.chars().filter(|c| !c.is_control()).take(WHO_LENGTH_MAX).collect()
}

//! What isn't HTTP, or too much of it, is refused by the HTTP library before any handler sees it, with
//! a head and nothing else. Here such an answer is given the body that every error has.
//!
//! No handler answers an error without a body, and no body of ours begins like a head, so what is
//! told apart here can't be mistaken.

use super::{ApiError, Code};
use axum::http::StatusCode;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::net::TcpStream;

/// The connection as the library sees it.
pub struct Wire {
    stream: TokioIo<TcpStream>,
    /// An answer in place of the library's, and how much of it is written.
    instead: Option<(Vec<u8>, usize)>,
}

impl Wire {
    pub fn new(stream: TcpStream) -> Wire {
        Wire { stream: TokioIo::new(stream), instead: None }
    }

    fn poll_instead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some((answer, written)) = &mut self.instead {
            let count = ready!(Pin::new(&mut self.stream).poll_write(cx, &answer[*written..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            *written += count;
            if *written == answer.len() {
                self.instead = None;
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// The library's own answer: an error's head that says that there is no body.
fn refusal(bytes: &[u8]) -> Option<StatusCode> {
    let head = std::str::from_utf8(bytes).ok()?.strip_suffix("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.")?.get(2..5)?;
    let status = StatusCode::from_bytes(status.as_bytes()).ok()?;
    let empty = lines.any(|line| line.eq_ignore_ascii_case("content-length: 0"));
    (empty && status.is_client_error()).then_some(status)
}

/// The same answer with a body.
fn answer(status: StatusCode) -> Vec<u8> {
    let error = match status {
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            let text = format!(
                "the head is over {} KiB, or has more than {} fields",
                super::HEAD_BYTES_MAX >> 10,
                super::HEADERS_MAX
            );
            ApiError::new(Code::TooLarge, text).next("send a smaller head")
        }
        StatusCode::URI_TOO_LONG => {
            ApiError::new(Code::TooLarge, "the path is too long").next("send a shorter one")
        }
        _ => ApiError::new(Code::Malformed, "this is not a request of HTTP/1.1"),
    };
    let body = error.body().to_string();
    let reason = status.canonical_reason().unwrap_or_default();
    let head = format!(
        "HTTP/1.1 {} {reason}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n",
        status.as_u16(),
        body.len()
    );
    [head, body].concat().into_bytes()
}

impl Read for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

/// Not vectored: a head and its body come as one piece.
impl Write for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_instead(cx))?;
        let Some(status) = refusal(bytes) else {
            return Pin::new(&mut self.stream).poll_write(cx, bytes);
        };
        self.instead = Some((answer(status), 0));
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_instead(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_instead(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_library_s_own_answers_are_told_anew() {
        let check = |bytes: &str, status: Option<u16>| {
            assert_eq!(refusal(bytes.as_bytes()).map(|it| it.as_u16()), status, "{bytes}");
        };
        let own = "HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\n\
                   date: Fri, 20 Nov 2026 10:00:00 GMT\r\n\r\n";
        check(own, Some(431));
        check(&own.replace("1.1 431", "1.0 400").replace("content", "Content"), Some(400));
        check(&own.replace("431", "200"), None);
        check(&own.replace("431", "500"), None);
        check(&own.replace("length: 0", "length: 2"), None);
        check(&own.replace("length: 0", "length: 01"), None);
        check(&format!("{own}{{}}"), None);
        check("{\"error\":\"HTTP/1.1 400\\r\\ncontent-length: 0\\r\\n\\r\\n\"}", None);
        check("", None);
    }
}

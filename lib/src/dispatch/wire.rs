//! The bytes of one connection, in both directions.

use std::future::Future;
use std::pin::{pin, Pin};
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Instant;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWrite};

use super::flight::Flight;
use super::holds::TrackId;
use crate::connection::{io_why, Stream};
use crate::context::Context;
use crate::error::Why;
use crate::metrics::Counter;
use crate::resp::{Frame, Scanner};

/// Requests are encoded no further ahead of the socket than this: what is not encoded yet can still
/// be cancelled, and survives the connection.
const WRITE_AHEAD: usize = 256 * 1024;
/// Memory that one large request or reply left behind is given back beyond this.
const KEEP: usize = 1024 * 1024;
const READ_CHUNK: usize = 64 * 1024;
/// Reads in a row before writing gets its turn.
const READS: usize = 16;

pub(super) struct Wire {
    stream: Box<dyn Stream>,
    context: Arc<Context>,
    input: BytesMut,
    scanner: Scanner,
    /// Encoded requests; those before `output_at` are written.
    output: Vec<u8>,
    output_at: usize,
    /// Bytes written in the connection's life.
    written: u64,
    last_read: Instant,
}

impl Wire {
    pub(super) fn new(stream: Box<dyn Stream>, context: Arc<Context>) -> Self {
        Wire {
            stream,
            context,
            input: BytesMut::new(),
            scanner: Scanner::default(),
            output: Vec::new(),
            output_at: 0,
            written: 0,
            last_read: Instant::now(),
        }
    }

    pub(super) fn last_read(&self) -> Instant {
        self.last_read
    }

    /// How many bytes the system was handed: a request that begins behind them was never sent.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Where in the connection's bytes the next request begins.
    pub(super) fn end(&self) -> u64 {
        self.written + (self.output.len() - self.output_at) as u64
    }

    pub(super) fn has_room(&self) -> bool {
        self.output.len() - self.output_at < WRITE_AHEAD
    }

    /// Where requests are encoded.
    pub(super) fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Writes what is encoded; true when anything was written.
    pub(super) fn poll_write(&mut self, task: &mut TaskContext<'_>) -> Result<bool, Why> {
        let mut wrote = false;
        while self.output_at < self.output.len() {
            let rest = &self.output[self.output_at..];
            match Pin::new(&mut self.stream).poll_write(task, rest) {
                Poll::Ready(Ok(0)) => return Err(Why::Closed),
                Poll::Ready(Ok(count)) => {
                    wrote = true;
                    self.output_at += count;
                    self.written += count as u64;
                    self.context.metrics.add(Counter::Writes, 1);
                    self.context.metrics.add(Counter::BytesOut, count as u64);
                }
                Poll::Ready(Err(error)) => return Err(io_why(error)),
                Poll::Pending => {
                    self.drop_written();
                    return Ok(wrote);
                }
            }
        }
        if self.output_at > 0 {
            self.output.clear();
            self.output.shrink_to(KEEP);
            self.output_at = 0;
        }
        // A stream that encrypts may hold bytes back until it is flushed.
        match Pin::new(&mut self.stream).poll_flush(task) {
            Poll::Ready(Err(error)) => Err(io_why(error)),
            _ => Ok(wrote),
        }
    }

    /// A socket that never takes everything must not make the buffer grow.
    fn drop_written(&mut self) {
        if self.output_at > WRITE_AHEAD.max(self.output.len() - self.output_at) {
            self.output.drain(..self.output_at);
            self.output_at = 0;
        }
    }

    /// Reads replies and hands each to its request; true when anything was read.
    pub(super) fn poll_read(
        &mut self,
        task: &mut TaskContext<'_>,
        flight: &mut Flight,
        id: TrackId,
    ) -> Result<bool, Why> {
        let mut read = false;
        for _ in 0..READS {
            if self.input.capacity() - self.input.len() < READ_CHUNK / 4 {
                self.input.reserve(READ_CHUNK);
            }
            let future = pin!(self.stream.read_buf(&mut self.input));
            match future.poll(task) {
                Poll::Ready(Ok(0)) => return Err(Why::Closed),
                Poll::Ready(Ok(count)) => {
                    read = true;
                    self.context.metrics.add(Counter::BytesIn, count as u64);
                    self.last_read = Instant::now();
                    self.dispatch(flight, id)?;
                }
                Poll::Ready(Err(error)) => return Err(io_why(error)),
                Poll::Pending => break,
            }
        }
        if self.input.is_empty() && self.input.capacity() > KEEP {
            self.input = BytesMut::new();
        }
        Ok(read)
    }

    /// Hands over all replies that are whole.
    fn dispatch(&mut self, flight: &mut Flight, id: TrackId) -> Result<(), Why> {
        let protocol = |bad: crate::resp::Malformed| Why::Protocol(bad.0.into());
        let mut whole = 0;
        while let Some(length) = self.scanner.scan(&self.input[whole..]).map_err(protocol)? {
            whole += length;
        }
        if whole == 0 {
            return Ok(());
        }
        let replies = self.input.split_to(whole).freeze();
        let mut at = 0;
        while at < whole {
            let frame = Frame::parse(&replies, &mut at).map_err(protocol)?;
            if !flight.reply(id, frame) {
                return Err(Why::Protocol("a reply that nothing asked for".into()));
            }
        }
        Ok(())
    }
}

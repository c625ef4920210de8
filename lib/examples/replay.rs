//! Sends recorded requests to Redis as fast as it takes them, through one connection with up to 100
//! operations in flight: the rate that the server itself can bear, whatever the client.
//!
//! `replay PORT FILE MILLISECONDS` repeats the file for so long; 0 means once. Prints two numbers:
//! operations done and microseconds taken.
//!
//! The file holds, for each operation: the length of its bytes and the number of their replies (both
//! big-endian, 4 bytes), then the bytes.

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Two batches are in flight at most: while the server works on one, the other's replies are read.
const BATCH: usize = 50;

/// Some operations that are written at once.
struct Batch {
    bytes: Range<usize>,
    operations: usize,
    replies: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, port, path, milliseconds] = arguments.as_slice() else {
        return Err("usage: replay PORT FILE MILLISECONDS".into());
    };
    let limit = Duration::from_millis(milliseconds.parse()?);
    let (requests, batches) = load(&std::fs::read(path)?)?;

    let mut writer = TcpStream::connect(("127.0.0.1", port.parse()?))?;
    writer.set_nodelay(true)?;
    let mut reader = BufReader::with_capacity(1 << 20, writer.try_clone()?);

    let begin = Instant::now();
    let mut operations = 0;
    let mut in_flight: Option<&Batch> = None;
    loop {
        for batch in &batches {
            writer.write_all(&requests[batch.bytes.clone()])?;
            if let Some(earlier) = in_flight.replace(batch) {
                operations += finish(&mut reader, earlier)?;
            }
        }
        if begin.elapsed() >= limit {
            break;
        }
    }
    if let Some(last) = in_flight {
        operations += finish(&mut reader, last)?;
    }
    println!("{operations} {}", begin.elapsed().as_micros());
    Ok(())
}

/// The requests of a whole file one after another, and where each batch of them lies.
fn load(mut file: &[u8]) -> Result<(Vec<u8>, Vec<Batch>), Box<dyn Error>> {
    let mut requests = Vec::with_capacity(file.len());
    let mut batches: Vec<Batch> = Vec::new();
    let mut operations = 0;
    while !file.is_empty() {
        let length = take_number(&mut file)?;
        let replies = take_number(&mut file)?;
        let begin = requests.len();
        requests.extend_from_slice(file.get(..length).ok_or("the file ends early")?);
        file = &file[length..];
        if operations % BATCH == 0 {
            batches.push(Batch {
                bytes: begin..begin,
                operations: 0,
                replies: 0,
            });
        }
        let batch = batches.last_mut().ok_or("no batch")?;
        batch.bytes.end = requests.len();
        batch.operations += 1;
        batch.replies += replies;
        operations += 1;
    }
    if batches.is_empty() {
        return Err("the file holds no operation".into());
    }
    Ok((requests, batches))
}

fn take_number(file: &mut &[u8]) -> Result<usize, Box<dyn Error>> {
    let (number, rest) = file.split_first_chunk::<4>().ok_or("the file ends early")?;
    *file = rest;
    Ok(u32::from_be_bytes(*number) as usize)
}

/// Reads a batch's replies; returns how many operations it was.
fn finish(reader: &mut impl BufRead, batch: &Batch) -> Result<usize, Box<dyn Error>> {
    let mut line = Vec::with_capacity(256);
    for _ in 0..batch.replies {
        skip_reply(reader, &mut line)?;
    }
    Ok(batch.operations)
}

/// Reads one reply of any kind. An error among them would mean that something else was measured than
/// was recorded, so it ends the run.
fn skip_reply(reader: &mut impl BufRead, line: &mut Vec<u8>) -> Result<(), Box<dyn Error>> {
    let mut values = 1;
    while values > 0 {
        values -= 1;
        line.clear();
        reader.read_until(b'\n', line)?;
        let kind = *line.first().ok_or("Redis closed the connection")?;
        match kind {
            b'-' => return Err(String::from_utf8_lossy(line).into()),
            b'$' | b'=' => skip_bytes(reader, length(line)?.map_or(0, |length| length + 2))?,
            b'*' | b'~' | b'>' => values += length(line)?.unwrap_or(0),
            b'%' => values += 2 * length(line)?.unwrap_or(0),
            _ => {}
        }
    }
    Ok(())
}

/// The number in a line, or nothing for the -1 of a null.
fn length(line: &[u8]) -> Result<Option<u64>, Box<dyn Error>> {
    let number: i64 = std::str::from_utf8(&line[1..])?.trim_end().parse()?;
    Ok(u64::try_from(number).ok())
}

fn skip_bytes(reader: &mut impl BufRead, count: u64) -> std::io::Result<()> {
    std::io::copy(&mut reader.take(count), &mut std::io::sink()).map(|_| ())
}

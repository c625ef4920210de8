//! Measures the table of routes in memory: `cargo run --release --example measure_table`.
//!
//! Memory is bytes a route, less those of its filter: what the allocator was asked for, what the system gave,
//! and what the table says. Times are those of one thread.

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use emqx_redis_core::table::Table;
use emqx_redis_core::topic::parse_filter;

/// Counts the bytes that are allocated, each allocation rounded up as usual allocators do.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: all is passed on to the system's allocator, under the same rules.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(rounded(layout), Relaxed);
        // SAFETY: the caller keeps the rules of this very function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(rounded(layout), Relaxed);
        // SAFETY: the caller keeps the rules of this very function.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn rounded(layout: Layout) -> usize {
    (layout.size() + 8).next_multiple_of(16).max(32)
}

type Make = fn(usize) -> String;

fn main() {
    const MILLION: usize = 1_000_000;
    let node: Make = |_| "emqx@10.0.0.1".into();
    let client: Make = |i| format!("client-{i}");
    let exact: Make = |i| format!("site/{}/device/{i}/temperature", i / 100);
    let wildcard: Make = |i| format!("site/{}/device/{i}/+", i / 100);
    let long: Make = |i| format!("site/{}/+/{i:036}/#", i / 100);
    let kinds: [(&str, Make, Make); 7] = [
        ("exact, one node", exact, node),
        ("exact, a client each", exact, client),
        ("wildcard, one node", wildcard, node),
        ("wildcard, a client each", wildcard, client),
        ("wildcard and long, one node", long, node),
        ("wildcard and long, a client each", long, client),
        ("one filter, a client each", |_| "all/+".into(), client),
    ];
    // Each kind in a process of its own, so that none uses what another left.
    if let Some(kind) = std::env::args().nth(1) {
        let (name, filter, destination) = kinds[kind.parse::<usize>().expect("a number")];
        return measure_memory(name, MILLION, filter, destination);
    }
    println!("1,000,000 routes | allocated | resident | memory() | add, ns | longest add, µs | remove, ns | left");
    for kind in 0..kinds.len() {
        let this = std::env::current_exe().expect("this program has a file");
        let run = std::process::Command::new(this)
            .arg(kind.to_string())
            .status();
        assert!(run.expect("it runs").success());
    }
    println!("\nfilters | 3 hits, ns | 1 hit, ns | miss in the trie, ns | miss at once, ns | p99 of 3 hits, ns");
    for count in [1_000, 10_000, 100_000, MILLION] {
        measure_find(count);
    }
}

fn measure_memory(name: &str, count: usize, filter: Make, destination: Make) {
    let filters: Vec<String> = (0..count).map(filter).collect();
    let destinations: Vec<String> = (0..count).map(destination).collect();
    let text = filters.iter().map(String::len).sum::<usize>() as f64;
    let (allocated, resident) = (ALLOCATED.load(Relaxed), resident());
    let mut table = Table::new();
    let mut longest = Duration::ZERO;
    let mut late = 0;
    let start = Instant::now();
    for (filter, destination) in filters.iter().zip(&destinations) {
        let filter = parse_filter(filter.as_bytes()).expect("a valid filter");
        let start = Instant::now();
        table.add(&filter, destination.as_bytes(), b"");
        let took = start.elapsed();
        longest = longest.max(took);
        late += usize::from(took > Duration::from_micros(100));
    }
    let add = start.elapsed().as_nanos() as usize / count;
    let unique = if table.filters() == 1 { 0.0 } else { text };
    let each = |bytes: usize| (bytes as f64 - unique) / count as f64;
    let figures = [
        each(ALLOCATED.load(Relaxed) - allocated),
        each(self::resident().saturating_sub(resident)),
        each(table.memory()),
    ];
    if table.filters() == 1 {
        let start = Instant::now();
        let done = table.find("all/x", usize::MAX, |route| {
            black_box(route.destination.len());
        });
        done.expect("no bound");
        let each = start.elapsed().as_nanos() as usize / count;
        println!("a match of one filter with 1,000,000 destinations: {each} ns each");
    }
    let start = Instant::now();
    for (filter, destination) in filters.iter().zip(&destinations) {
        let filter = parse_filter(filter.as_bytes()).expect("a valid filter");
        table.remove(&filter, destination.as_bytes());
    }
    let remove = start.elapsed().as_nanos() as usize / count;
    assert_eq!(table.routes(), 0);
    let rest = ALLOCATED.load(Relaxed) - allocated;
    let [allocated, resident, memory] = figures.map(|bytes| bytes.round());
    println!(
        "{name} | {allocated} | {resident} | {memory} | {add} | {} ({late} over 100) | {remove} | {rest}",
        longest.as_micros()
    );
}

fn measure_find(count: usize) {
    // Three of the filters match a name: one by its device, one by its site, one by its kind; a hundredth
    // of the filters are sites.
    let mut table = Table::new();
    let devices = count * 8 / 10;
    let add = |table: &mut Table, filter: String, client: usize| {
        let filter = parse_filter(filter.as_bytes()).expect("a valid filter");
        table.add(&filter, format!("client-{client}").as_bytes(), b"options");
    };
    for i in 0..devices {
        add(&mut table, format!("site/{}/device/{i}/+", i / 10), i);
    }
    for site in 0..count / 10 {
        add(&mut table, format!("site/{site}/#"), site);
        add(&mut table, format!("site/{site}/+/+/humidity"), site + 1);
    }
    add(&mut table, "+/+/device/+/temperature".into(), 0);
    let random = |i: usize, of: usize| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % of;
    let names = |make: &dyn Fn(usize) -> String| -> Vec<String> {
        (0..100_000).map(|i| make(random(i, devices))).collect()
    };
    let three = names(&|i| format!("site/{}/device/{i}/temperature", i / 10));
    let one = names(&|i| format!("site/{}", i / 10));
    let deep = names(&|i| format!("site/x{}/device/{i}/humidity", i / 10));
    let first = names(&|i| format!("$other/{}/device/{i}", i / 10));
    let figures = [(&three, 3), (&one, 1), (&deep, 0), (&first, 0)].map(|(names, hits)| {
        let rounds = 5;
        let start = Instant::now();
        let mut found = 0;
        for name in (0..rounds).flat_map(|_| names) {
            let done = table.find(name, 10_000, |route| {
                found += black_box(route.destination.len()).min(1);
            });
            done.expect("few steps");
        }
        let took = start.elapsed();
        assert_eq!(found, hits * rounds * names.len());
        took.as_nanos() as usize / (rounds * names.len())
    });
    let mut times: Vec<_> = three
        .iter()
        .map(|name| {
            let start = Instant::now();
            let _ = table.find(name, 10_000, |route| {
                black_box(route.filter.len());
            });
            start.elapsed()
        })
        .collect();
    times.sort();
    let [three, one, deep, first] = figures;
    let p99 = times[times.len() * 99 / 100].as_nanos();
    println!(
        "{} | {three} | {one} | {deep} | {first} | {p99}",
        table.filters()
    );
}

/// The process's resident memory.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<usize>().ok());
    pages.unwrap_or_default() * 4096
}

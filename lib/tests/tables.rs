//! The lock of the tables: a large match keeps nobody waiting.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use emqx_redis_core::replica::tables::{Replaced, TableLock, Tables};
use emqx_redis_core::route_scripts::Space;

const ROUTES: usize = 200_000;

fn large() -> Tables {
    let mut tables = Tables::default();
    for number in 0..ROUTES {
        let client = format!("client {number}");
        tables.add(
            Space::Subscriptions,
            b"to/all",
            client.as_bytes(),
            b"options",
        );
    }
    tables
}

#[test]
fn a_writer_waits_for_a_slice_of_a_large_match() {
    let tables = TableLock::default();
    tables.replace(large());
    let has_ended = AtomicBool::new(false);
    let (writes, longest, took) = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let start = Instant::now();
            let mut found = 0;
            for _ in 0..3 {
                let done = tables.find_in_slices(Space::Subscriptions, "to/all", |_| found += 1);
                assert_eq!(done, Ok(()));
            }
            assert_eq!(found, 3 * ROUTES);
            has_ended.store(true, SeqCst);
            start.elapsed() / 3
        });
        let (mut writes, mut longest) = (0, Duration::ZERO);
        while !has_ended.load(SeqCst) {
            let start = Instant::now();
            tables.write(|tables| tables.add(Space::Routes, b"another/+", b"node", b""));
            longest = longest.max(start.elapsed());
            writes += 1;
            std::thread::sleep(Duration::from_micros(500));
        }
        (
            writes,
            longest,
            reader.join().expect("the reader found all"),
        )
    });
    assert!(writes > 20, "{writes}");
    assert!(longest < took / 2, "{longest:?} of {took:?}");
}

#[test]
fn a_match_in_tables_that_are_replaced_gives_no_answer() {
    let tables = TableLock::default();
    tables.replace(large());
    let mut found = 0;
    std::thread::scope(|scope| {
        let done = tables.find_in_slices(Space::Subscriptions, "to/all", |_| {
            found += 1;
            if found == 1 {
                scope.spawn(|| tables.replace(Tables::default()));
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        assert_eq!(done, Err(Replaced));
    });
    assert!(found < ROUTES);
    let done = tables.find_in_slices(Space::Subscriptions, "to/all", |_| unreachable!());
    assert_eq!(done, Ok(()));
}

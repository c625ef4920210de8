//! The table of routes against a plain list of them and the rules of `topic`.

use std::collections::{BTreeMap, BTreeSet};

use emqx_redis_core::table::{Cursor, Found, OverBudget, Position, Table};
use emqx_redis_core::topic::{self, parse_filter, Filter, MAX_BYTES};
use proptest::prelude::*;

type Route = (String, Vec<u8>, Vec<u8>);

/// What an empty table may take.
const SMALL: usize = 2_000;
const ENOUGH: usize = 1_000_000;

fn filter(text: &str) -> Filter<'_> {
    parse_filter(text.as_bytes()).expect("a valid filter")
}

fn owned(found: Found<'_>) -> Route {
    let Found {
        filter,
        destination,
        value,
    } = found;
    let filter = String::from_utf8(filter.into()).expect("a filter is text");
    (filter, destination.into(), value.into())
}

fn find(table: &Table, name: &str) -> Vec<Route> {
    let mut found = Vec::new();
    let done = table.find(name, ENOUGH, |route| found.push(owned(route)));
    assert_eq!(done, Ok(()), "{name}");
    found.sort();
    found
}

fn find_in_slices(table: &Table, name: &str, steps: usize) -> Vec<Route> {
    let (mut found, mut next) = (Vec::new(), Some(Position::default()));
    while let Some(from) = next {
        next = table.find_from(name, from, steps, |route| found.push(owned(route)));
    }
    found.sort();
    found
}

fn filters_found(table: &Table, name: &str) -> Vec<String> {
    find(table, name)
        .into_iter()
        .map(|(filter, ..)| filter)
        .collect()
}

fn scan(table: &Table, slots: usize) -> Vec<Route> {
    let (mut found, mut cursor) = (Vec::new(), Some(Cursor::default()));
    while let Some(from) = cursor {
        cursor = table.scan(from, slots, |route| found.push(owned(route)));
    }
    found.sort();
    found
}

/// The routes once more, in a plain list.
#[derive(Default)]
struct Model(BTreeMap<(String, Vec<u8>), Vec<u8>>);

impl Model {
    fn add(&mut self, filter: &str, destination: &[u8], value: &[u8]) -> bool {
        let key = (filter.into(), destination.into());
        self.0.insert(key, value.into()).as_deref() != Some(value)
    }

    fn remove(&mut self, filter: &str, destination: &[u8]) -> bool {
        self.0
            .remove(&(filter.into(), destination.into()))
            .is_some()
    }

    fn assign(&mut self, filter: &str, destinations: &[(&[u8], &[u8])]) -> bool {
        let before = self.0.clone();
        self.0.retain(|(other, _), _| other != filter);
        for (destination, value) in destinations {
            self.add(filter, destination, value);
        }
        self.0 != before
    }

    fn all(&self) -> Vec<Route> {
        let routes = self.0.iter();
        routes
            .map(|((filter, to), value)| (filter.clone(), to.clone(), value.clone()))
            .collect()
    }

    fn find(&self, name: &str) -> Vec<Route> {
        let mut found = self.all();
        found.retain(|(text, ..)| topic::matches(name, filter(text).real));
        found
    }

    fn check(&self, table: &Table, names: &[String]) {
        for name in names {
            let expected = self.find(name);
            assert_eq!(find(table, name), expected, "{name}");
            for steps in [1, 9] {
                assert_eq!(find_in_slices(table, name, steps), expected, "{name}");
            }
        }
        assert_eq!(table.routes(), self.0.len());
        let mut filters: BTreeMap<&str, usize> = BTreeMap::new();
        for (text, _) in self.0.keys() {
            *filters.entry(text).or_default() += 1;
        }
        assert_eq!(table.filters(), filters.len());
        for (text, count) in &filters {
            assert_eq!(table.destinations(&filter(text)), *count);
        }
        for ((text, destination), value) in &self.0 {
            assert_eq!(table.value(&filter(text), destination), Some(&value[..]));
        }
        assert!(table.nodes() <= 2 * filters.len() + 1);
        assert_eq!(scan(table, 1), self.all());
        assert_eq!(scan(table, ENOUGH), self.all());
    }

    fn clear(self, table: &mut Table) {
        for (text, destination) in self.0.keys() {
            assert!(table.remove(&filter(text), destination));
        }
        assert_eq!((table.routes(), table.filters(), table.nodes()), (0, 0, 0));
        assert!(table.memory() < SMALL, "{}", table.memory());
        assert_eq!(scan(table, 1), []);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Add(String, u8, u8),
    Remove(String, u8),
    Assign(String, Vec<(u8, u8)>),
    RemoveAny(prop::sample::Index),
}

fn level() -> impl Strategy<Value = &'static str> {
    let long = "a level that has more bytes than are kept in place";
    prop::sample::select(vec!["a", "b", "", "$a", "é", "ab", long])
}

fn name() -> impl Strategy<Value = String> {
    let levels = prop::collection::vec(level(), 1..6);
    let deep = prop::collection::vec(prop::sample::select(vec!["a", ""]), 100);
    prop_oneof![9 => levels, 1 => deep]
        .prop_map(|levels| levels.join("/"))
        .prop_filter("a topic is not empty", |name| !name.is_empty())
}

fn any_filter() -> impl Strategy<Value = String> {
    let level = prop_oneof![2 => level(), 1 => Just("+")];
    let deep = prop::collection::vec(prop::sample::select(vec!["a", "", "+"]), 100);
    let levels = prop_oneof![9 => prop::collection::vec(level, 1..6), 1 => deep];
    let share = prop::sample::select(vec!["", "", "$share/g/", "$share/another group/"]);
    (levels, any::<bool>(), share)
        .prop_map(|(mut levels, multi, share)| {
            if multi {
                *levels.last_mut().expect("it has a level") = "#";
            }
            format!("{share}{}", levels.join("/"))
        })
        .prop_filter("a filter is valid", |filter| {
            parse_filter(filter.as_bytes()).is_ok()
        })
}

fn step() -> impl Strategy<Value = Step> {
    let filter = || prop_oneof![1 => any_filter(), 1 => Just("a/+/b".to_string())];
    prop_oneof![
        6 => (filter(), 0..60u8, 0..3u8).prop_map(|(filter, to, value)| Step::Add(filter, to, value)),
        1 => (filter(), 0..60u8).prop_map(|(filter, to)| Step::Remove(filter, to)),
        1 => (filter(), prop::collection::vec((0..60u8, 0..3u8), 0..50))
            .prop_map(|(filter, routes)| Step::Assign(filter, routes)),
        4 => any::<prop::sample::Index>().prop_map(Step::RemoveAny),
    ]
}

/// Some are empty, some long.
fn destination(number: u8) -> Vec<u8> {
    vec![number; usize::from(number)]
}

fn value(number: u8) -> Vec<u8> {
    vec![number; 15 * usize::from(number)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_table_is_as_a_list(
        steps in prop::collection::vec(step(), 1..120),
        names in prop::collection::vec(name(), 20),
    ) {
        let (mut table, mut model) = (Table::new(), Model::default());
        for (count, step) in steps.into_iter().enumerate() {
            match step {
                Step::Add(text, to, number) => {
                    let (to, value) = (destination(to), value(number));
                    let added = table.add(&filter(&text), &to, &value);
                    prop_assert_eq!(added, model.add(&text, &to, &value));
                    prop_assert!(table.contains(&filter(&text), &to));
                }
                Step::Remove(text, to) => {
                    let removed = table.remove(&filter(&text), &destination(to));
                    prop_assert_eq!(removed, model.remove(&text, &destination(to)));
                    prop_assert!(!table.contains(&filter(&text), &destination(to)));
                }
                Step::RemoveAny(_) if model.0.is_empty() => {}
                Step::RemoveAny(index) => {
                    let keys: Vec<_> = model.0.keys().cloned().collect();
                    let (text, to) = index.get(&keys);
                    prop_assert!(table.remove(&filter(text), to) && model.remove(text, to));
                }
                Step::Assign(text, routes) => {
                    let routes: Vec<_> =
                        routes.into_iter().map(|(to, number)| (destination(to), value(number))).collect();
                    let routes: Vec<_> = routes.iter().map(|(to, value)| (&to[..], &value[..])).collect();
                    let before = model.0.clone();
                    let assigned = table.assign(&filter(&text), &routes);
                    prop_assert!(assigned || !model.assign(&text, &routes));
                    model.0 = before;
                    model.assign(&text, &routes);
                }
            }
            if count % 10 == 0 {
                model.check(&table, &names);
            }
        }
        model.check(&table, &names);
        model.clear(&mut table);
    }
}

/// A filter that matches most of the names that are made of its own letters.
fn matching_filter() -> impl Strategy<Value = String> {
    let level = prop::sample::select(vec!["a", "a", "b", "", "", "$a", "+", "+", "+"]);
    let levels = prop::collection::vec(level, 1..5);
    let levels = levels.prop_filter("a filter is not empty", |levels| levels[..] != [""]);
    (levels, 0..3usize).prop_map(|(mut levels, end)| {
        match end {
            0 => levels.push("#"),
            1 => *levels.last_mut().expect("it has a level") = "#",
            _ => {}
        }
        levels.join("/")
    })
}

fn change() -> impl Strategy<Value = Step> {
    let filter = || {
        let shared = matching_filter().prop_map(|filter| format!("$share/g/{filter}"));
        let many = prop::sample::select(vec!["a/a/a", "a/+/a", "$share/g/a/+/a", "a/+/a/#"]);
        prop_oneof![4 => matching_filter(), 1 => shared, 4 => many.prop_map(String::from)]
    };
    prop_oneof![
        5 => (filter(), 0..60u8).prop_map(|(filter, to)| Step::Add(filter, to, to % 3)),
        2 => (filter(), 0..60u8).prop_map(|(filter, to)| Step::Remove(filter, to)),
        1 => (filter(), 30..60u8, any::<bool>()).prop_map(|(filter, to, all)| {
            let routes = (0..to).filter(|to| all || to % 8 == 0);
            Step::Assign(filter, routes.map(|to| (to, to % 3)).collect())
        }),
    ]
}

fn take(step: &Step, table: &mut Table, model: &mut Model) {
    match step {
        Step::Add(text, to, number) => {
            table.add(&filter(text), &destination(*to), &value(*number));
            model.add(text, &destination(*to), &value(*number));
        }
        Step::Remove(text, to) => {
            table.remove(&filter(text), &destination(*to));
            model.remove(text, &destination(*to));
        }
        Step::Assign(text, routes) => {
            let routes: Vec<_> = routes
                .iter()
                .map(|(to, number)| (destination(*to), value(*number)))
                .collect();
            let routes: Vec<_> = routes
                .iter()
                .map(|(to, value)| (&to[..], &value[..]))
                .collect();
            table.assign(&filter(text), &routes);
            model.assign(text, &routes);
        }
        Step::RemoveAny(_) => unreachable!("no such change is made"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn a_match_in_slices_finds_what_stays_once(
        before in prop::collection::vec(change(), 1..60),
        between in prop::collection::vec(prop::collection::vec(change(), 0..4), 1..30),
        steps in 1..40usize,
        name in prop::sample::select(vec!["a/a/a", "a/b/a", "a/a/a/a", "b", "a", "a/", "a//b", "//", "$a/a", "$a//a"]),
    ) {
        let (mut table, mut model) = (Table::new(), Model::default());
        before.iter().for_each(|step| take(step, &mut table, &mut model));
        let place = |(filter, to, _): Route| (filter, to);
        let matching = |model: &Model| model.find(name).into_iter().map(place).collect();
        let mut stays: BTreeSet<_> = matching(&model);
        let mut found = Vec::new();
        let mut next = Some(Position::default());
        let mut changes = between.iter();
        while let Some(from) = next.take() {
            prop_assert!(found.len() < 10_000, "it begins anew for ever");
            let is_now = model.find(name);
            next = table.find_from(name, from, steps, |route| {
                let route = owned(route);
                assert!(is_now.binary_search(&route).is_ok(), "{route:?}");
                found.push(place(route));
            });
            for step in changes.next().into_iter().flatten() {
                take(step, &mut table, &mut model);
                let here: BTreeSet<_> = matching(&model);
                if next.is_some() {
                    stays.retain(|place| here.contains(place));
                }
            }
        }
        for place in &stays {
            let times = found.iter().filter(|it| *it == place).count();
            prop_assert_eq!(times, 1, "{:?}", place);
        }
    }
}

#[test]
fn filters_match_as_in_section_4_7() {
    let mut table = Table::new();
    let filters = [
        "#",
        "+",
        "/#",
        "/+",
        "+/+",
        "+/#",
        "a",
        "a/#",
        "a/+",
        "a/b",
        "a/+/#",
        "a//b",
        "$SYS/#",
        "$SYS/+",
        "$share/g/a/b",
        "$share/g/a/+",
        "$share/h/#",
        "$share",
    ];
    for text in filters {
        assert!(table.add(&filter(text), b"node", b""));
        assert!(!table.add(&filter(text), b"node", b""));
    }
    assert_eq!(
        filters_found(&table, "a"),
        ["#", "$share/h/#", "+", "+/#", "a", "a/#"]
    );
    let all = [
        "#",
        "$share/g/a/+",
        "$share/g/a/b",
        "$share/h/#",
        "+/#",
        "+/+",
        "a/#",
        "a/+",
        "a/+/#",
        "a/b",
    ];
    assert_eq!(filters_found(&table, "a/b"), all);
    assert_eq!(
        filters_found(&table, "/"),
        ["#", "$share/h/#", "+/#", "+/+", "/#", "/+"]
    );
    let all = ["#", "$share/h/#", "+/#", "a/#", "a/+/#", "a//b"];
    assert_eq!(filters_found(&table, "a//b"), all);
    assert_eq!(filters_found(&table, "$SYS"), ["$SYS/#"]);
    assert_eq!(filters_found(&table, "$SYS/a"), ["$SYS/#", "$SYS/+"]);
    assert_eq!(filters_found(&table, "$share"), ["$share"]);
    assert_eq!(filters_found(&table, "$share/g/a/b"), [""; 0]);
}

#[test]
fn a_filter_grows_to_many_destinations_and_back() {
    let (mut table, mut model) = (Table::new(), Model::default());
    let texts = ["a/b", "$share/g/a/b", "$share/h/a/b", "a/+", "$share/g/a/+"];
    let names = ["a/b".to_string(), "a/c".to_string()];
    let to = |number: u32| format!("client {number}").into_bytes();
    for number in 0..3_000 {
        let text = texts[number as usize % texts.len()];
        assert!(table.add(&filter(text), &to(number), b"1") && model.add(text, &to(number), b"1"));
        if number < 200 {
            model.check(&table, &names);
        }
    }
    model.check(&table, &names);
    for number in (0..3_000).rev() {
        let text = texts[number as usize % texts.len()];
        assert!(table.add(&filter(text), &to(number), b"2"));
        assert!(table.remove(&filter(text), &to(number)) && model.remove(text, &to(number)));
        if number < 200 {
            model.check(&table, &names);
        }
    }
    model.clear(&mut table);
}

#[test]
fn a_scan_sees_what_stays_while_the_table_changes() {
    let mut table = Table::new();
    let to = |number: usize| format!("client {number}").into_bytes();
    let text = |number: usize| format!("a/{number}/+");
    for number in 0..3_000 {
        table.add(&filter(&text(number % 300)), &to(number), b"stays");
        table.add(&filter("many/+"), &to(number), b"stays");
    }
    let stays = table.routes();
    let (mut seen, mut cursor, mut round) = (Vec::new(), Some(Cursor::default()), 0);
    while let Some(from) = cursor {
        cursor = table.scan(from, 7, |route| seen.push(owned(route)));
        for number in 0..40 {
            let other = format!("other/{}/#", (round * 31 + number) % 1_000);
            match number % 2 {
                0 => table.add(&filter(&other), b"other", b""),
                _ => table.remove(&filter(&other), b"other"),
            };
            table.add(
                &filter("many/+"),
                &to(4_000 + (round + number) % 500),
                b"goes",
            );
            table.remove(&filter("many/+"), &to(4_000 + (round * 7 + number) % 500));
        }
        round += 1;
        assert!(round < 100_000);
    }
    seen.sort();
    seen.dedup();
    seen.retain(|(_, _, value)| value == b"stays");
    assert_eq!(seen.len(), stays);
}

/// A slice goes on with routes that were moved to fewer slots and back meanwhile.
#[test]
fn a_scan_sees_what_stays_in_a_filter_that_shrinks_and_grows() {
    let mut table = Table::new();
    let to = |number: usize| format!("client {number}").into_bytes();
    (0..100).for_each(|number| assert!(table.add(&filter("+"), &to(number), b"")));
    let mut seen = Vec::new();
    let cursor = table.scan(Cursor::default(), 50, |route| seen.push(owned(route)));
    assert_eq!(seen.len(), 50);
    (0..90).for_each(|number| assert!(table.remove(&filter("+"), &to(number))));
    (200..300).for_each(|number| assert!(table.add(&filter("+"), &to(number), b"")));
    let end = table.scan(cursor.expect("there is more"), 1_000, |route| {
        seen.push(owned(route))
    });
    assert_eq!(end, None);
    for number in 90..100 {
        assert!(
            seen.iter()
                .any(|(_, destination, _)| *destination == to(number)),
            "{number}"
        );
    }
}

#[test]
fn a_match_in_an_adverse_trie_is_bounded() {
    let mut table = Table::new();
    for bits in 0..1 << 16 {
        let levels: Vec<_> = (0..16)
            .map(|bit| if bits >> bit & 1 == 1 { "+" } else { "x" })
            .collect();
        table.add(&filter(&format!("{}/end", levels.join("/"))), b"node", b"");
    }
    let name = "x/".repeat(16) + "other";
    let mut found = 0;
    assert_eq!(table.find(&name, 10_000, |_| found += 1), Err(OverBudget));
    // The look-up is one step more.
    let enough = table.nodes() + 1;
    assert_eq!(table.find(&name, enough, |_| found += 1), Ok(()));
    assert_eq!(found, 0);
    let name = "x/".repeat(16) + "end";
    assert_eq!(
        table.find(&name, enough + (1 << 16), |_| found += 1),
        Ok(())
    );
    assert_eq!(found, 1 << 16);
    found = 0;
    assert_eq!(table.find(&name, 10_000, |_| found += 1), Err(OverBudget));
    assert!(found > 0 && found < 10_000);
}

/// Looking at the same long level again and again is work, too.
#[test]
fn long_levels_count_as_more_steps() {
    let mut table = Table::new();
    for bits in 0..1 << 8 {
        let levels: Vec<_> = (0..8)
            .map(|bit| if bits >> bit & 1 == 1 { "+" } else { "x" })
            .collect();
        table.add(
            &filter(&format!("{}/end/+", levels.join("/"))),
            b"node",
            b"",
        );
        table.add(&filter(&format!("{}/+/+", levels.join("/"))), b"node", b"");
    }
    let name = "x/".repeat(8) + &"long".repeat(15_000);
    assert_eq!(
        table.find(&name, table.nodes() + 1, |_| {}),
        Err(OverBudget)
    );
    assert_eq!(table.find(&name, 512 * (60_000 / 256 + 4), |_| {}), Ok(()));
}

#[test]
fn results_count_as_steps() {
    let mut table = Table::new();
    for number in 0..100u8 {
        table.add(&filter("a"), &[number], b"");
    }
    let mut found = 0;
    assert_eq!(table.find("a", 101, |_| found += 1), Ok(()));
    assert_eq!(found, 100);
    assert_eq!(table.find("a", 100, |_| found += 1), Err(OverBudget));
    assert_eq!(found, 199);
}

/// A match goes on with routes that were moved to fewer slots and back meanwhile.
#[test]
fn a_match_goes_on_in_a_filter_that_shrinks_and_grows() {
    let mut table = Table::new();
    let to = |number: usize| format!("client {number}").into_bytes();
    (0..100).for_each(|number| assert!(table.add(&filter("a"), &to(number), b"")));
    let mut seen = Vec::new();
    let mut slice = |table: &Table, from, steps| {
        table.find_from("a", from, steps, |route| seen.push(owned(route)))
    };
    let next = slice(&table, Position::default(), 51).expect("there is more");
    (0..90).for_each(|number| assert!(table.remove(&filter("a"), &to(number))));
    (200..300).for_each(|number| assert!(table.add(&filter("a"), &to(number), b"")));
    assert!(slice(&table, next, 1_000).is_none());
    for number in 90..100 {
        let is_it = |(_, it, _): &&Route| *it == to(number);
        assert_eq!(seen.iter().filter(is_it).count(), 1, "{number}");
    }
}

/// The next node is gone, and the one beside it was put together with the one above.
#[test]
fn a_match_goes_on_where_nodes_were_joined() {
    for (gone, stays, name) in [
        ("x/y/+", "x/+/z", "x/y/z"),
        ("+/+", "+/", "x/"),
        ("a/b/+", "a//#", "a/b/c"),
        ("$x/y/+", "$x/+/z", "$x/y/z"),
    ] {
        for steps in 1..8 {
            let mut table = Table::new();
            table.add(&filter(gone), b"node", b"");
            table.add(&filter(stays), b"node", b"");
            let mut found = Vec::new();
            let mut visit = |route: Found<'_>| found.push(owned(route).0);
            let next = table.find_from(name, Position::default(), steps, &mut visit);
            table.remove(&filter(gone), b"node");
            if let Some(from) = next {
                assert!(table.find_from(name, from, 100, &mut visit).is_none());
            }
            let times = found.iter().filter(|it| *it == stays).count();
            let expected = usize::from(topic::matches(name, stays));
            assert_eq!(times, expected, "{stays} of {found:?}");
        }
    }
}

/// Many routes, many filters, many nodes without a route: no slice takes more steps than it has, but for one filter.
#[test]
fn a_slice_is_short() {
    let mut table = Table::new();
    for number in 0..50_000u32 {
        table.add(&filter("x/x/x/x/x/x/x/x/end"), &number.to_be_bytes(), b"");
        table.add(&filter("+/x/x/x/x/x/x/x/#"), &number.to_be_bytes(), b"");
        table.remove(&filter("+/x/x/x/x/x/x/x/#"), &(number / 2).to_be_bytes());
    }
    for bits in 0..1 << 8 {
        let level = |bit| if bits >> bit & 1 == 1 { "+" } else { "x" };
        let levels: Vec<_> = (0..8).map(level).collect();
        let levels = levels.join("/");
        for to in 0..32u8 {
            table.add(&filter(&format!("{levels}/end")), &[to], b"");
        }
        table.add(&filter(&format!("{levels}/another end")), b"node", b"");
    }
    let name = "x/".repeat(8) + "end";
    let (mut found, mut slices) = (0, 0);
    let mut next = Some(Position::default());
    while let Some(from) = next {
        let before = found;
        next = table.find_from(&name, from, 100, |_| found += 1);
        slices += 1;
        assert!(found - before <= 132 && slices < 5_000, "{found} {slices}");
    }
    assert_eq!(found, 50_000 + 25_000 + 255 * 32 + 32);
}

#[test]
fn the_longest_topics_are_matched_without_recursion() {
    let name = "/".repeat(MAX_BYTES);
    let mut filters = vec![
        name.clone(),
        "/".repeat(MAX_BYTES - 1) + "+",
        "/".repeat(MAX_BYTES - 1) + "#",
        "+".to_string() + &"/".repeat(MAX_BYTES - 1),
        "+/".repeat(MAX_BYTES / 2) + "#",
    ];
    for depth in [0, 1, 2, 1_000, 30_000, 65_000] {
        filters.push("/".repeat(depth) + "+/#");
        filters.push("/".repeat(depth) + "+/" + &"/".repeat(MAX_BYTES - depth - 2));
    }
    let (mut table, mut model) = (Table::new(), Model::default());
    for text in &filters {
        table.add(&filter(text), b"node", b"");
        model.add(text, b"node", b"");
    }
    model.check(
        &table,
        &[
            name.clone(),
            name[1..].to_string(),
            "/".into(),
            "/".repeat(1_001),
        ],
    );
    assert!(table.memory() < 2_500_000, "{}", table.memory());
    // A filter that parts at each level, so that every level is a node.
    for depth in 0..1_000 {
        let text = "/".repeat(depth) + "+";
        table.add(&filter(&text), b"node", b"");
        model.add(&text, b"node", b"");
    }
    model.check(&table, &[name, "/".repeat(999)]);
    model.clear(&mut table);
}

/// Whatever order filters come and go in, the trie has no more nodes than it needs.
#[test]
fn nodes_are_joined_when_what_parted_them_goes() {
    let mut table = Table::new();
    assert!(table.add(&filter("a/b/c/+/d"), b"node", b""));
    let (nodes, memory) = (table.nodes(), table.memory());
    assert_eq!(nodes, 2);
    for other in [
        "a/b/c/+/e",
        "a/b/+",
        "a/#",
        "a/b/c/+/d/#",
        "a/+/c/+/d",
        "#",
        "a/b/c/+",
    ] {
        assert!(table.add(&filter(other), b"node", b""));
        assert!(table.nodes() <= nodes + 2);
        assert!(table.remove(&filter(other), b"node"));
        assert_eq!(table.nodes(), nodes, "{other}");
        assert_eq!(filters_found(&table, "a/b/c/x/d"), ["a/b/c/+/d"]);
    }
    assert!(table.memory() < memory + 2_000);
}

#[test]
fn threads_may_share_a_table() {
    fn shared<T: Send + Sync>(_: &T) {}
    shared(&Table::new());
}

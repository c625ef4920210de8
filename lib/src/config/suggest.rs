//! The known key that a misspelt one was probably meant to be.

/// The key among `known` that is at most two edits from `key`, and nearer than half its length.
pub(super) fn nearest(key: &str, known: &[&'static str]) -> Option<&'static str> {
    // Longer than any key by more than the edits allowed: not worth comparing.
    if key.len() > 64 {
        return None;
    }
    known
        .iter()
        .map(|candidate| (distance(key, candidate), *candidate))
        .filter(|(edits, candidate)| *edits <= 2 && edits * 2 < candidate.len())
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance, by bytes: the known keys are ASCII.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_nearest_key_or_none() {
        let known = ["servers", "sentinel", "database", "type"];
        assert_eq!(nearest("server", &known), Some("servers"));
        assert_eq!(nearest("databsae", &known), Some("database"));
        assert_eq!(nearest("cluster_name", &known), None);
        assert_eq!(nearest("", &known), None);
        assert_eq!(nearest(&"x".repeat(100_000), &known), None);
    }

    #[test]
    fn distance_counts_edits() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("same", "same"), 0);
    }
}

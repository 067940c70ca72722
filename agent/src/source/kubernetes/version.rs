//! Resource versions: which of two versions of an object is newer.

/// `metadata.resourceVersion` as a number. Versions of one kind are ordered by it: promised by the API since Kubernetes
/// 1.35 (KEP-5504), true of every API server that stores in etcd before that. 0 if it is no number: of unknown age.
pub(super) fn number(text: &str) -> u64 {
    text.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn versions_are_ordered_as_numbers_not_as_text() {
        assert!(number("1000") > number("999"));
        assert_eq!(number("17"), 17);
        for text in ["", "abc", "-1", "1.5"] {
            assert_eq!(number(text), 0, "{text}");
        }
    }
}

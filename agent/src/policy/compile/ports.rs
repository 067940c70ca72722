//! Sets of ports, and functions from ports to decisions as the fewest prefixes.

use smallvec::SmallVec;

/// A port, or ICMP type << 8 | code.
pub type Range = (u16, u16);

/// Sorted, disjoint, not adjacent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(SmallVec<[Range; 4]>);

impl Ranges {
    pub fn all() -> Self {
        Self(SmallVec::from_slice(&[(0, u16::MAX)]))
    }

    pub fn of(ranges: impl IntoIterator<Item = Range>) -> Self {
        let mut ranges: SmallVec<[Range; 4]> = ranges.into_iter().filter(|(lo, hi)| lo <= hi).collect();
        ranges.sort_unstable();
        let mut merged: SmallVec<[Range; 4]> = SmallVec::new();
        for (lo, hi) in ranges {
            match merged.last_mut() {
                Some(last) if u32::from(lo) <= u32::from(last.1) + 1 => last.1 = last.1.max(hi),
                _ => merged.push((lo, hi)),
            }
        }
        Self(merged)
    }

    pub fn union(&self, other: &Self) -> Self {
        Self::of(self.0.iter().chain(&other.0).copied())
    }

    pub fn without(&self, other: &Self) -> Self {
        let mut left: SmallVec<[Range; 4]> = SmallVec::new();
        for &(lo, hi) in &self.0 {
            let mut from = u32::from(lo);
            for &(out_lo, out_hi) in other.0.iter().filter(|out| out.1 >= lo && out.0 <= hi) {
                if u32::from(out_lo) > from {
                    left.push((from as u16, out_lo - 1));
                }
                from = u32::from(out_hi) + 1;
            }
            if from <= u32::from(hi) {
                left.push((from as u16, hi));
            }
        }
        Self(left)
    }

    pub fn contains(&self, port: u16) -> bool {
        let at = self.0.partition_point(|&(_, hi)| hi < port);
        self.0.get(at).is_some_and(|&(lo, _)| lo <= port)
    }

    pub fn iter(&self) -> impl Iterator<Item = Range> {
        self.0.iter().copied()
    }
}

/// A value for each port: (last port, value), ascending, the last for 65535.
pub type Segments<T> = Vec<(u16, T)>;

/// A function of ports as longest-matching prefixes.
#[derive(Debug, PartialEq, Eq)]
pub struct Cover<T> {
    /// Where no prefix matches.
    pub base: T,
    /// (Length, first port, value), by position in the port tree.
    pub prefixes: Vec<(u8, u16, T)>,
}

/// The fewest prefixes, of lengths that are multiples of `stride`, that make the function; `base` is free, or given.
///
/// Draves, King, Venkatachary, Zill: "Constructing Optimal IP Routing Tables" (INFOCOM 1999), on a tree of 2^stride
/// branches: from the leaves up, the values that cost a subtree least are those that most of its children can have;
/// from the root down, a prefix is needed where a subtree cannot have what it inherits.
pub fn cover<T: Copy + PartialEq>(segments: &[(u16, T)], stride: u8, base: Option<T>) -> Cover<T> {
    let mut tree = Tree {
        nodes: Vec::new(),
        stride,
    };
    let root = tree.grow(segments, 0, 0);
    let base = base.unwrap_or_else(|| tree.nodes[root].values[0]);
    let mut prefixes = Vec::new();
    tree.emit(root, 0, 0, base, &mut prefixes);
    Cover { base, prefixes }
}

struct Node<T> {
    /// Index of the first child; children follow each other. None: a leaf.
    children: Option<usize>,
    values: SmallVec<[T; 2]>,
}

struct Tree<T> {
    nodes: Vec<Node<T>>,
    stride: u8,
}

impl<T: Copy + PartialEq> Tree<T> {
    fn leaf_or_none(&mut self, segments: &[(u16, T)], first: u16, length: u8) -> Option<Node<T>> {
        let last = first | (u32::from(u16::MAX) >> length) as u16;
        let at = segments.partition_point(|&(end, _)| end < first);
        let (end, value) = segments[at];
        (end >= last).then(|| Node {
            children: None,
            values: SmallVec::from_slice(&[value]),
        })
    }

    fn grow(&mut self, segments: &[(u16, T)], first: u16, length: u8) -> usize {
        let node = self.node(segments, first, length);
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn node(&mut self, segments: &[(u16, T)], first: u16, length: u8) -> Node<T> {
        if let Some(leaf) = self.leaf_or_none(segments, first, length) {
            return leaf;
        }
        let length = length + self.stride;
        let children: Vec<Node<T>> = (0..1_u32 << self.stride)
            .map(|child| self.node(segments, first | (child << (16 - length)) as u16, length))
            .collect();
        let mut counts: SmallVec<[(T, usize); 4]> = SmallVec::new();
        for value in children.iter().flat_map(|child| child.values.iter().copied()) {
            match counts.iter_mut().find(|(known, _)| *known == value) {
                Some((_, count)) => *count += 1,
                None => counts.push((value, 1)),
            }
        }
        let most = counts.iter().map(|&(_, count)| count).max().unwrap_or_default();
        let values = counts
            .iter()
            .filter(|&&(_, count)| count == most)
            .map(|&(value, _)| value)
            .collect();
        let at = self.nodes.len();
        self.nodes.extend(children);
        Node {
            children: Some(at),
            values,
        }
    }

    fn emit(&self, node: usize, first: u16, length: u8, inherited: T, prefixes: &mut Vec<(u8, u16, T)>) {
        let Node { children, values } = &self.nodes[node];
        let value = if values.contains(&inherited) {
            inherited
        } else {
            prefixes.push((length, first, values[0]));
            values[0]
        };
        if let Some(children) = children {
            let length = length + self.stride;
            for child in 0..1_usize << self.stride {
                let first = first | ((child as u32) << (16 - length)) as u16;
                self.emit(children + child, first, length, value, prefixes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lookup(cover: &Cover<u8>, port: u16) -> u8 {
        cover
            .prefixes
            .iter()
            .filter(|&&(length, first, _)| {
                let mask = (u32::from(u16::MAX) << (16 - length)) as u16;
                port & mask == first
            })
            .max_by_key(|&&(length, ..)| length)
            .map_or(cover.base, |&(.., value)| value)
    }

    fn segments(cuts: &[(u16, u8)], last: u8) -> Segments<u8> {
        let mut cuts: Vec<_> = cuts.iter().copied().filter(|&(port, _)| port < u16::MAX).collect();
        cuts.sort_unstable_by_key(|&(port, _)| port);
        cuts.dedup_by_key(|&mut (port, _)| port);
        cuts.push((u16::MAX, last));
        cuts
    }

    proptest! {
        #[test]
        fn a_cover_is_the_function(cuts in prop::collection::vec((any::<u16>(), 0..4_u8), 0..12), last in 0..4_u8) {
            let segments = segments(&cuts, last);
            for stride in [1, 4, 8] {
                for base in [None, Some(0)] {
                    let cover = cover(&segments, stride, base);
                    for &(end, _) in &segments {
                        for port in [end, end.wrapping_add(1), end.wrapping_sub(1)] {
                            let at = segments.partition_point(|&(end, _)| end < port);
                            prop_assert_eq!(lookup(&cover, port), segments[at].1);
                        }
                    }
                    prop_assert!(cover.prefixes.iter().all(|(length, ..)| length % stride == 0));
                }
            }
        }

        #[test]
        fn a_range_costs_at_most_sixty_prefixes(lo in any::<u16>(), hi in any::<u16>()) {
            let (lo, hi) = (lo.min(hi), lo.max(hi));
            let mut segments = vec![];
            if lo > 0 {
                segments.push((lo - 1, 0));
            }
            segments.push((hi, 1));
            if hi < u16::MAX {
                segments.push((u16::MAX, 0));
            }
            prop_assert!(cover(&segments, 4, None).prefixes.len() <= 60);
        }

        #[test]
        fn sets_of_ports(a in prop::collection::vec((0..300_u16, 0..300_u16), 0..6),
                         b in prop::collection::vec((0..300_u16, 0..300_u16), 0..6)) {
            let (left, right) = (Ranges::of(a.clone()), Ranges::of(b.clone()));
            let (union, without) = (left.union(&right), left.without(&right));
            let within = |ranges: &[(u16, u16)], port| ranges.iter().any(|&(lo, hi)| (lo..=hi).contains(&port));
            for port in 0..310 {
                prop_assert_eq!(left.contains(port), within(&a, port));
                prop_assert_eq!(union.contains(port), within(&a, port) || within(&b, port));
                prop_assert_eq!(without.contains(port), within(&a, port) && !within(&b, port));
            }
        }
    }

    #[test]
    fn single_ports_cost_one_entry_each() {
        let segments = vec![(79, 0), (80, 1), (442, 0), (443, 1), (u16::MAX, 0)];
        let cover = cover(&segments, 4, None);
        assert_eq!((cover.base, cover.prefixes), (0, vec![(16, 80, 1), (16, 443, 1)]));
    }
}

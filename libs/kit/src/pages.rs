//! Lists in pages, as Google's AIP-158 has them.
//!
//! A list grows with use, and a message has a limit. A caller that names a page
//! size gets at most so many entries, and no more than fit in [`PAGE_BYTES`]
//! (one at least), with a token for the next page while there is one. Short lists
//! are one round trip.
//!
//! A token is the place of the last entry in the list's order. So what stays while
//! a list is read is in it once, whatever is added or removed meanwhile; an entry
//! that is added may be missed, one that is removed may still be there.

use prost::Message;

/// Bytes of the entries of one page.
pub const PAGE_BYTES: usize = 4 << 20;

/// Page size of a caller that wants all: its pages are bounded by their bytes.
pub const ANY_SIZE: u32 = u32::MAX;

/// Which page is asked for.
#[derive(Clone, Copy, Debug)]
pub struct PageAsked<'a> {
    /// At most so many entries. 0, without a token: all of them, however many
    /// bytes they have, as clients expect that know of no pages.
    pub size: u32,
    /// That of the page before. Empty: the first page.
    pub token: &'a str,
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Page<T> {
    pub entries: Vec<T>,
    /// Empty: this is the last page.
    pub next_token: String,
}

/// Bytes of a message on the wire.
#[must_use]
pub fn bytes(message: &impl Message) -> usize {
    message.encoded_len()
}

/// Cuts a page from a list. `place` is the entry's in the list's order, ascending
/// and different for each; `wire` makes the message of an entry.
pub fn page<S, T: Message>(
    all: impl IntoIterator<Item = S>,
    asked: PageAsked<'_>,
    place: impl Fn(&S) -> String,
    wire: impl Fn(S) -> T,
) -> Page<T> {
    let PageAsked { size, token } = asked;
    if size == 0 && token.is_empty() {
        return Page {
            entries: all.into_iter().map(wire).collect(),
            next_token: String::new(),
        };
    }
    let limit = if size == 0 { ANY_SIZE } else { size } as usize;
    let mut places: Vec<(String, S)> = all
        .into_iter()
        .map(|entry| (place(&entry), entry))
        .filter(|(place, _)| place.as_str() > token)
        .collect();
    places.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut entries = Vec::new();
    let mut bytes = 0;
    let mut last = String::new();
    for (place, entry) in places {
        let message = wire(entry);
        bytes += message.encoded_len();
        let full = entries.len() == limit || (bytes > PAGE_BYTES && !entries.is_empty());
        if full {
            return Page {
                entries,
                next_token: last,
            };
        }
        entries.push(message);
        last = place;
    }
    Page {
        entries,
        next_token: String::new(),
    }
}

/// The place in a list whose newest entry is the first. `nanos`: since the Unix
/// epoch.
#[must_use]
pub fn newest_first(nanos: i128, id: &str) -> String {
    format!("{:020}.{id}", u64::MAX - biased(nanos))
}

/// The place in a list whose oldest entry is the first.
#[must_use]
pub fn oldest_first(nanos: i128, id: &str) -> String {
    format!("{:020}.{id}", biased(nanos))
}

/// Nanoseconds as a number whose order is theirs, before 1970 too.
fn biased(nanos: i128) -> u64 {
    let nanos = nanos.clamp(i64::MIN.into(), i64::MAX.into());
    u64::try_from(nanos - i128::from(i64::MIN)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use prost_types::{DescriptorProto, FileDescriptorSet};

    use super::*;

    fn read(lists: impl Iterator<Item = Vec<String>>, size: u32) -> (Vec<String>, usize) {
        let (mut all, mut token, mut pages) = (Vec::new(), String::new(), 0);
        for list in lists {
            let asked = PageAsked {
                size,
                token: &token,
            };
            let page = page(list, asked, Clone::clone, |text: String| text);
            all.extend(page.entries);
            pages += 1;
            token = page.next_token;
            if token.is_empty() {
                break;
            }
        }
        (all, pages)
    }

    #[test]
    fn a_list_of_any_length_comes_whole_in_bounded_pages() {
        let entries: Vec<String> = (0..20)
            .map(|number| format!("{number:02}{}", "x".repeat(1 << 20)))
            .collect();
        let (all, pages) = read(std::iter::repeat(entries.clone()), ANY_SIZE);
        assert_eq!(all, entries);
        assert!((5..=7).contains(&pages), "{pages}");
        let short: Vec<String> = entries.iter().map(|text| text[..2].to_owned()).collect();
        assert_eq!(
            read(std::iter::repeat(short.clone()), ANY_SIZE),
            (short.clone(), 1)
        );
        assert_eq!(
            read(std::iter::repeat(short.clone()), 7),
            (short.clone(), 3)
        );
        // As clients that know of no pages ask.
        assert_eq!(read(std::iter::repeat(short.clone()), 0), (short, 1));
        let huge = vec!["y".repeat(PAGE_BYTES * 2)];
        assert_eq!(read(std::iter::repeat(huge.clone()), ANY_SIZE), (huge, 1));
    }

    #[test]
    fn what_stays_is_listed_once_while_others_come_and_go() {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let lists: [Vec<String>; 3] = [
            list(&["b", "d", "f", "h"]),
            list(&["a", "b", "e", "f", "h"]),
            list(&["a", "f", "g", "h", "i"]),
        ];
        let (all, _) = read(lists.into_iter(), 2);
        assert_eq!(all, ["b", "d", "e", "f", "g", "h"]);
    }

    #[test]
    fn places_are_in_the_order_of_time() {
        let times = [i128::MIN, -5, 0, 7, 1_700_000_000_000_000_000, i128::MAX];
        for pair in times.windows(2) {
            assert!(newest_first(pair[0], "a") > newest_first(pair[1], "a"));
            assert!(oldest_first(pair[0], "a") < oldest_first(pair[1], "a"));
        }
        assert!(newest_first(1, "a") < newest_first(1, "b"));
    }

    #[test]
    fn every_list_has_pages() {
        // They have as many entries as the configuration says.
        const SHORT: [&str; 1] = ["ListNetworksResponse"];
        let set = FileDescriptorSet::decode(gantry_proto::DESCRIPTORS).unwrap();
        let lists: BTreeMap<&str, &DescriptorProto> = set
            .file
            .iter()
            .filter(|file| file.package().starts_with("gantry."))
            .flat_map(|file| &file.message_type)
            .map(|message| (message.name(), message))
            .filter(|(name, _)| name.starts_with("List") && name.ends_with("Response"))
            .filter(|(name, _)| !SHORT.contains(name))
            .collect();
        assert!(lists.len() >= 6, "{:?}", lists.keys());
        for (name, list) in lists {
            let has_more = list
                .field
                .iter()
                .any(|field| matches!(field.name(), "next_page_token" | "more"));
            assert!(has_more, "{name} has no pages");
        }
    }
}

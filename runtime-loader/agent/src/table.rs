//! The objects of one kind, through lists, changes and lists again.

use std::collections::BTreeMap;
use std::ops::Bound;

/// The objects of one kind by key. During a list, what was there before stays until the list is complete: then what it
/// did not mention is gone.
#[derive(Debug)]
pub struct Table<T> {
    entries: BTreeMap<String, (T, u64)>,
    /// Counts lists; every entry knows the last one that it was seen in.
    list: u64,
    complete: bool,
}

impl<T> Default for Table<T> {
    fn default() -> Table<T> {
        Table { entries: BTreeMap::new(), list: 0, complete: false }
    }
}

impl<T: PartialEq> Table<T> {
    /// A list begins, or begins anew.
    pub fn begin(&mut self) {
        self.list += 1;
    }

    /// An object is as given; says whether that is news.
    pub fn put(&mut self, key: String, value: T) -> bool {
        match self.entries.get_mut(&key) {
            Some((old, seen)) => {
                *seen = self.list;
                let news = *old != value;
                if news {
                    *old = value;
                }
                news
            }
            None => {
                self.entries.insert(key, (value, self.list));
                true
            }
        }
    }

    /// An object is gone; gives it, if it was there.
    pub fn remove(&mut self, key: &str) -> Option<T> {
        self.entries.remove(key).map(|(value, _)| value)
    }

    /// The list is complete; says whether that is news, because it is the first or because something is gone.
    pub fn end(&mut self) -> bool {
        let before = self.entries.len();
        self.entries.retain(|_, (_, seen)| *seen == self.list);
        let first = !self.complete;
        self.complete = true;
        first || self.entries.len() != before
    }

    /// Whether an object was there before this list, which has not mentioned it.
    pub fn is_unseen(&self, key: &str) -> bool {
        self.entries.get(key).is_some_and(|(_, seen)| *seen != self.list)
    }

    /// Whether a list was ever complete.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// One object.
    pub fn get(&self, key: &str) -> Option<&T> {
        self.entries.get(key).map(|(value, _)| value)
    }

    /// All objects in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.entries.iter().map(|(key, (value, _))| (key.as_str(), value))
    }

    /// The objects of a namespace, whose keys are `namespace/name`, in the order of their keys.
    pub fn of_namespace(&self, namespace: &str) -> impl Iterator<Item = (&str, &T)> {
        let (from, to) = (format!("{namespace}/"), end_of(namespace));
        let bounds = (Bound::Included(from.as_str()), Bound::Excluded(to.as_str()));
        self.entries.range::<str, _>(bounds).map(|(key, (value, _))| (key.as_str(), value))
    }

    /// All objects in the order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.entries.values().map(|(value, _)| value)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// What is greater than all `namespace/name` of a namespace, and not greater than those of the next.
pub fn end_of(namespace: &str) -> String {
    const AFTER_SLASH: char = '0';
    format!("{namespace}{AFTER_SLASH}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_replaces_what_was_there_once_it_is_complete() {
        let mut table = Table::default();
        table.begin();
        assert!(table.put("a".into(), 1) && table.put("b".into(), 1));
        assert!(!table.is_complete());
        assert!(table.end() && table.is_complete());
        table.begin();
        assert!(!table.put("a".into(), 1), "as before");
        table.begin();
        assert!(table.put("c".into(), 2));
        assert_eq!(table.len(), 3, "nothing is gone while lists are not complete");
        assert!(table.end());
        assert_eq!(table.iter().collect::<Vec<_>>(), [("c", &2)]);
        table.begin();
        table.put("c".into(), 2);
        assert!(!table.end(), "no news");
        assert_eq!(table.remove("c"), Some(2));
    }
}

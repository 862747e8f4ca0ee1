//! Things with ids that are never mistaken for later things in the same place.

use std::{fmt, marker::PhantomData};

/// Names a `T` in a [`Slab`]. Ids of removed entries stay wrong for ever (for 2³² reuses).
pub struct Id<T> {
    index: u32,
    generation: u32,
    of: PhantomData<fn() -> T>,
}

impl<T> Id<T> {
    /// Where it is: unique among the living, reused afterwards.
    pub fn index(self) -> usize {
        self.index as usize
    }

    /// An id that nothing has.
    pub fn nobody() -> Self {
        Self { index: u32::MAX, generation: 0, of: PhantomData }
    }
}

impl<T> Clone for Id<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Id<T> {}

impl<T> PartialEq for Id<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.index, self.generation) == (other.index, other.generation)
    }
}

impl<T> Eq for Id<T> {}

impl<T> fmt::Debug for Id<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index, self.generation)
    }
}

/// A growing array of `T` whose places are reused.
pub struct Slab<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
}

struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    pub fn insert(&mut self, value: T) -> Id<T> {
        let index = self.free.pop().unwrap_or(self.entries.len() as u32);
        if let Some(entry) = self.entries.get_mut(index as usize) {
            entry.value = Some(value);
            return Id { index, generation: entry.generation, of: PhantomData };
        }
        self.entries.push(Entry { generation: 0, value: Some(value) });
        Id { index, generation: 0, of: PhantomData }
    }

    #[inline]
    pub fn get(&self, id: Id<T>) -> Option<&T> {
        let entry = self.entries.get(id.index())?;
        if entry.generation == id.generation { entry.value.as_ref() } else { None }
    }

    #[inline]
    pub fn get_mut(&mut self, id: Id<T>) -> Option<&mut T> {
        let entry = self.entries.get_mut(id.index())?;
        if entry.generation == id.generation { entry.value.as_mut() } else { None }
    }

    pub fn remove(&mut self, id: Id<T>) -> Option<T> {
        let entry = self.entries.get_mut(id.index())?;
        if entry.generation != id.generation {
            return None;
        }
        let value = entry.value.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(id.index);
        Some(value)
    }

    /// How many live.
    pub fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The living, by index.
    pub fn iter(&self) -> impl Iterator<Item = (Id<T>, &T)> {
        self.entries.iter().enumerate().filter_map(|(index, entry)| {
            let id = Id { index: index as u32, generation: entry.generation, of: PhantomData };
            entry.value.as_ref().map(|value| (id, value))
        })
    }

    /// The ids of the living, by index.
    pub fn ids(&self) -> Vec<Id<T>> {
        self.iter().map(|(id, _)| id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_ids_stay_wrong() {
        let mut slab = Slab::default();
        let first = slab.insert("a");
        let second = slab.insert("b");
        assert_eq!(slab.remove(first), Some("a"));
        let third = slab.insert("c");
        assert_eq!(third.index(), first.index());
        assert_eq!((slab.get(first), slab.get(third)), (None, Some(&"c")));
        assert_eq!(slab.get_mut(second), Some(&mut "b"));
        assert_eq!((slab.remove(first), slab.len(), slab.ids()), (None, 2, vec![third, second]));
    }
}

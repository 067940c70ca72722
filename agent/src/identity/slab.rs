//! Values under small numbers.

/// A vector with holes. Numbers of removed values are given out again.
#[derive(Debug)]
pub struct Slab<T> {
    slots: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slab<T> {
    pub fn insert(&mut self, value: T) -> u32 {
        if let Some(id) = self.free.pop() {
            self.slots[id as usize] = Some(value);
            return id;
        }
        if self.slots.len() == self.slots.capacity() {
            // By an eighth, not twofold: with ten thousand peers the unused half would be megabytes.
            self.slots.reserve_exact((self.slots.len() / 8).max(16));
        }
        self.slots.push(Some(value));
        // More than 2^32 values do not fit into memory.
        (self.slots.len() - 1) as u32
    }

    pub fn remove(&mut self, id: u32) -> Option<T> {
        let value = self.slots.get_mut(id as usize)?.take();
        if value.is_some() {
            self.free.push(id);
        }
        value
    }

    #[must_use]
    pub fn get(&self, id: u32) -> Option<&T> {
        self.slots.get(id as usize)?.as_ref()
    }

    pub fn get_mut(&mut self, id: u32) -> Option<&mut T> {
        self.slots.get_mut(id as usize)?.as_mut()
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.slots
            .iter()
            .enumerate()
            .filter_map(|(id, slot)| Some((id as u32, slot.as_ref()?)))
    }

    #[must_use]
    pub fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

impl<T> std::ops::Index<u32> for Slab<T> {
    type Output = T;

    /// Panics where there is no value: ids come from [`Slab::insert`] of the same slab, so that is a bug here.
    fn index(&self, id: u32) -> &T {
        self.slots[id as usize].as_ref().expect("an id that is in use")
    }
}

impl<T> std::ops::IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, id: u32) -> &mut T {
        self.slots[id as usize].as_mut().expect("an id that is in use")
    }
}

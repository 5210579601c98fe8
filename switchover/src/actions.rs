//! A few actions, without an allocation.

/// What is to be done, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Actions<A>([Option<A>; 4]);

impl<A: Copy> Actions<A> {
    /// Nothing.
    pub(crate) const fn none() -> Self {
        Self([None; 4])
    }

    /// The same, and then `action`.
    pub(crate) fn and(mut self, action: A) -> Self {
        let free = self.0.iter_mut().find(|slot| slot.is_none());
        *free.expect("no event leads to more than four actions") = Some(action);
        self
    }

    /// The same, and then `action` if `condition`.
    pub(crate) fn and_if(self, condition: bool, action: A) -> Self {
        if condition { self.and(action) } else { self }
    }
}

impl<A> IntoIterator for Actions<A> {
    type Item = A;
    type IntoIter = std::iter::Flatten<std::array::IntoIter<Option<A>, 4>>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter().flatten()
    }
}

/// An event that changes nothing where it came. There is no third kind: whoever drives a side must
/// treat every kind, so a new one shall not compile unnoticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Unexpected {
    /// Nobody's fault: it was overtaken by another event. It belongs into a trace.
    #[error("{0}")]
    Late(&'static str),
    /// The caller's: an operator's command that cannot be obeyed now. He is told.
    #[error("{0}")]
    NotNow(&'static str),
}

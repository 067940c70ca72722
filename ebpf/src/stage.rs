//! Stages: the parts of the programs' work that the verifier checks once each.
//!
//! An ordinary function is walked again for every call and for every state that its callers come in: the parts of a
//! program multiply. A *global* one (kernel commit 51c39bb1d5d1, Linux 5.6) is checked on its own, for whatever
//! arguments its types allow, and a call of it is one instruction: the parts add up. The kernel takes a function for
//! global by its linkage in the object's BTF, and the linker gives that linkage to exported symbols.
//!
//! The price: the verifier knows nothing of the arguments but their types, and nothing of the result but that it is a
//! number. Arguments are the context, numbers, and pointers to memory of a type's size (kernel commit e5069b9c23b3,
//! Linux 5.12), which is neither a key nor a value for a map before Linux 6.2: [`crate::scratch::own`]. Whatever else a
//! stage has to say goes through [`crate::scratch`].

/// Makes a function a stage.
macro_rules! stage {
    (
        $(#[$attribute:meta])*
        pub fn $name:ident($($argument:ident: $type:ty),* $(,)?) -> u32 $body:block
    ) => {
        $(#[$attribute])*
        ///
        /// # Safety
        /// All pointers are the running program's: its context, memory of its own, live map elements.
        #[cfg_attr(target_arch = "bpf", unsafe(no_mangle))]
        #[inline(never)]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> u32 $body
    };
}
pub(crate) use stage;

/// What a stage's argument points to. It is never `None`, but as far as the verifier knows it could be.
///
/// # Safety
/// `pointer` is null, or points to live memory that nothing else refers to meanwhile.
#[inline(always)]
pub unsafe fn memory<'a, T>(pointer: *mut T) -> Option<&'a mut T> {
    // SAFETY: the caller's promise.
    unsafe { pointer.as_mut() }
}

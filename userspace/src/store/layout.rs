//! The layout of a store's keys, as far as a backend can use it.

/// The layout of the keys below a prefix that is read as a whole.
///
/// Most keys below `root` belong to a *group* and are members of it. A backend may use the layout
/// to read the prefix in key ranges of about equal size. The layout is a hint: where it is wrong,
/// the ranges differ in size.
///
/// The prefixes are below `root`, in ascending order: `random`, `ordered`, `groups`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The prefix that is read as a whole.
    pub root: &'static str,
    /// Prefix of members by group, whose names begin with a random hexadecimal digit:
    /// `RANDOM/GROUP/MEMBER`.
    pub random: &'static str,
    /// Prefix of members by group whose names are not random: `ORDERED/GROUP/MEMBER`.
    pub ordered: &'static str,
    /// Prefix of the groups' own keys: `GROUPS/GROUP`.
    pub groups: &'static str,
    /// A group with this character in its name has few members.
    pub small: char,
}

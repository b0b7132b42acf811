//! What is written and what it means, or why it is refused: text in, text out.

mod documents;
mod policies;
mod summary;

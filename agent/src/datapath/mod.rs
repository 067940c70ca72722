//! The only code that touches maps, programs and links.

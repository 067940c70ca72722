//! Local pods and their interfaces.

//! The loop that wires the rooms: objects in, plans executed, questions answered.

mod spec;
mod layout;
fn main() {}

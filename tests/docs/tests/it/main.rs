//! The documentation says what is so: every block of code of every page is run, read by what reads it, or listed with the reason why not;
//! every link leads somewhere; every page of the book is in its contents.

mod blocks;
mod exempt;
mod inline;
mod links;
mod run;

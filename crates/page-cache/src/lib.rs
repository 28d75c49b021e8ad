//! The page cache: the pages of files, and the locks that settle who fills them and who takes
//! their blocks away.

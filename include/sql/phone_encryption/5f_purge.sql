-- After step 5: the table is written anew, without what the dropped column has left in its pages; so are its indexes.
-- Lock: ACCESS EXCLUSIVE as long as that takes: nobody reads or writes it meanwhile. A person has agreed to that.
-- Not within a transaction. What is lost with a crash is the new file, never the old one.
VACUUM (FULL) {relation}

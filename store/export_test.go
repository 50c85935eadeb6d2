package store

// SetScan makes a page of a search look at n records at most.
func (s *Store) SetScan(n int) { s.scan = n }

package ipam

// Numbers gives numbers below a limit, each to one holder at most: the blocks of a network
// to nodes, or its virtual addresses to services. What was released last is given again
// last (next-fit), so that late packets do not reach a new holder.
type Numbers struct {
	limit   uint32
	usable  func(number uint32) bool
	holders map[uint32]string
	next    uint32
}

// NewNumbers returns numbers that have no holder. Numbers that are not usable are never
// given. The search for the first one begins at next.
func NewNumbers(limit, next uint32, usable func(number uint32) bool) *Numbers {
	return &Numbers{limit: limit, usable: usable, holders: map[uint32]string{}, next: next}
}

// Take gives a holder a number; false if all are held.
func (n *Numbers) Take(holder string) (number uint32, ok bool) {
	if n.limit == 0 {
		return 0, false
	}
	// Of so many numbers in a row one has no holder, unless it is not usable.
	for range n.limit {
		number = n.next % n.limit
		n.next = (number + 1) % n.limit
		if _, held := n.holders[number]; !held && n.usable(number) {
			n.holders[number] = holder
			return number, true
		}
	}
	return 0, false
}

// Restore notes that a record says that a number is held. It reports false, and changes
// nothing, if another one holds it, or if there is no such number.
func (n *Numbers) Restore(number uint32, holder string) bool {
	if other, held := n.holders[number]; number >= n.limit || held && other != holder {
		return false
	}
	n.holders[number] = holder
	return true
}

// Release takes a number from its holder.
func (n *Numbers) Release(number uint32) { delete(n.holders, number) }

// Holder returns the holder of a number; "" if there is none.
func (n *Numbers) Holder(number uint32) string { return n.holders[number] }

// Next returns where the next search begins: what must be kept with the holders.
func (n *Numbers) Next() uint32 { return n.next }

// Held returns how many numbers have a holder.
func (n *Numbers) Held() int { return len(n.holders) }

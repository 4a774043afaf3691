package serve

import (
	"os"
	"runtime"
	"runtime/debug"
)

const (
	// headroom is how much a manager's heap holds for nothing: never touched, it
	// takes addresses and no memory.
	headroom = 48 << 20
	// headroomBlock is the size of the blocks that the headroom consists of. Go clears
	// a block that contains a single page which was used before, and then all of the
	// block takes memory: as one block the headroom did so in one of four processes.
	headroomBlock = 1 << 20
)

// holdHeadroom keeps the garbage collector from running all the time while the
// heap is small: it runs when the heap has doubled, and a manager that has just
// started doubles its heap several times a second when work comes in. With the
// headroom it lets up to this much garbage lie, and large heaps grow only
// as they would (GOGC would multiply these, too). What it returns must be
// called at the end. GOGC in the environment turns it off.
func holdHeadroom() (release func()) {
	if os.Getenv("GOGC") != "" {
		return func() {}
	}
	// No collection while it is made: each would scan what is there for nothing.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	blocks := make([][]byte, headroom/headroomBlock)
	for i := range blocks {
		blocks[i] = make([]byte, headroomBlock)
	}
	return func() { runtime.KeepAlive(blocks) }
}

package serve

import (
	"os"
	"runtime"
)

// headroom is how much a manager's heap holds for nothing: never touched, it
// takes addresses and no memory.
const headroom = 48 << 20

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
	b := make([]byte, headroom)
	return func() { runtime.KeepAlive(b) }
}

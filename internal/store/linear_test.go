package store_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/kvfault"
	"github.com/musterhq/muster/internal/store"
)

// input is an operation on the registers of the linearizability test. A swap writes a value to one
// register and tells which one was there; a compare-and-swap is refused unless
// the register has the value that it expects; a read is an update that fails.
type input struct {
	op        string // "swap", "cas", "read"
	key       string
	old, new_ int
}

type output struct {
	value   int
	refused bool
	unknown bool
}

var registers = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		by := map[string][]porcupine.Operation{}
		for _, op := range history {
			key := op.Input.(input).key
			by[key] = append(by[key], op)
		}
		var parts [][]porcupine.Operation
		for _, p := range by {
			parts = append(parts, p)
		}
		return parts
	},
	Init: func() any { return 0 },
	Step: func(state, in, out any) (bool, any) {
		now, i, o := state.(int), in.(input), out.(output)
		switch {
		case i.op == "read":
			return o.unknown || o.value == now, now
		case i.op == "cas" && i.old != now:
			return o.unknown || o.refused && o.value == now, now
		default:
			return o.unknown || !o.refused && o.value == now, i.new_
		}
	},
	DescribeOperation: func(in, out any) string { return fmt.Sprintf("%+v -> %+v", in, out) },
}

var (
	errRead    = errors.New("only read")
	errRefusal = errors.New("not the expected value")
)

// TestUpdatesAreLinearizable records the results of many updates through several stores,
// while the kv is slow, fails, or applies transactions and loses the answers. A checker
// must find an order that explains the results.
func TestUpdatesAreLinearizable(t *testing.T) {
	onEach(t, func(t *testing.T, opt store.Options) {
		const stores, clients, ops, keys = 3, 3, 40, 4
		table := numbers("registers")
		broken := kvfault.New(opt.KV)
		opt.KV = broken
		opt.MaxPage = 64
		isCommit := func(c kvfault.Call) bool { return c.Writes }
		for i := range 12 {
			broken.Inject(kvfault.Fault{Op: kvfault.Txn, When: isCommit, Skip: 10 + i*9, Times: 2, Applied: i%2 == 0, Err: errAway})
			broken.Inject(kvfault.Fault{Op: kvfault.Txn, Skip: 17 + i*23, Times: 3, Err: errAway})
			broken.Inject(kvfault.Fault{Op: kvfault.List, Skip: 5 + i*11, Times: 1, Err: errAway})
			broken.Inject(kvfault.Fault{Op: kvfault.Txn, When: isCommit, Skip: 20 + i*13, Times: 1, Delay: 20 * time.Millisecond})
		}

		var mu sync.Mutex
		var history []porcupine.Operation
		var wg sync.WaitGroup
		start := time.Now()
		for i := range stores {
			s, _ := open(t, opt, table)
			for j := range clients {
				wg.Go(func() {
					for n := range ops {
						client := i*clients + j
						in := input{
							op:  []string{"swap", "cas", "read"}[rand.IntN(3)],
							key: fmt.Sprintf("%d/x", rand.IntN(keys)),
							old: rand.IntN(3), new_: 1000 + client*ops + n, // each value once
						}
						begin := time.Since(start)
						out, ok := apply(t, s, table, in)
						end := int64(time.Since(start))
						if !ok {
							continue
						}
						if out.unknown {
							end = math.MaxInt64
						}
						mu.Lock()
						history = append(history, porcupine.Operation{
							ClientId: client, Input: in, Output: out, Call: int64(begin), Return: end,
						})
						mu.Unlock()
					}
				})
			}
		}
		wg.Wait()
		if len(history) < stores*clients*ops/2 {
			t.Errorf("only %d of %d operations had an outcome", len(history), stores*clients*ops)
		}
		if r := porcupine.CheckOperationsTimeout(registers, history, 5*time.Minute); r != porcupine.Ok {
			t.Errorf("history of %d operations: %v", len(history), r)
		}
	})
}

// apply runs an operation. It reports false if the operation was certainly not applied and
// has no result.
func apply(t *testing.T, s *store.Store, table *store.Table[int], in input) (output, bool) {
	t.Helper()
	timeout := 20 * time.Second
	if rand.IntN(10) == 0 {
		timeout = 3 * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	var was int
	err := s.Update(ctx, func(tx *store.Tx) error {
		was = count(table, tx, in.key)
		switch {
		case in.op == "read":
			return errRead
		case in.op == "cas" && was != in.old:
			return errRefusal
		}
		table.Put(tx, in.key, in.new_)
		return nil
	})
	switch {
	case err == nil:
		if v := count(table, s.Snapshot(), in.key); v == was && v != in.new_ {
			t.Errorf("%+v succeeded, but the snapshot does not show it", in)
		}
		return output{value: was}, true
	case errors.Is(err, errRead):
		return output{value: was}, true
	case errors.Is(err, errRefusal):
		return output{value: was, refused: true}, true
	case errors.Is(err, store.ErrOutcomeUnknown):
		return output{unknown: true}, true
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, kv.ErrUnavailable):
		return output{}, false
	}
	t.Errorf("%+v: %v", in, err)
	return output{}, false
}

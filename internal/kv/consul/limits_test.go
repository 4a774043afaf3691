package consul

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/musterhq/muster/internal/kv"
)

// maxRequest is Consul's default of txn_max_req_len.
const maxRequest = 512 << 10

// TestLimitsFitRequest makes the largest requests that the limits allow, with
// the values in one operation, in some or in all.
func TestLimitsFitRequest(t *testing.T) {
	for _, writes := range []int{1, 2, limits.Ops / 2, limits.Ops - 1, limits.Ops} {
		for _, other := range []kv.Verb{kv.Get, kv.DeleteCAS, kv.CheckIndex} {
			t.Run(fmt.Sprintf("writes=%d/other=%d", writes, other), func(t *testing.T) {
				ops := make([]kv.Op, limits.Ops)
				for i := range ops {
					ops[i] = kv.Op{Verb: other, Key: strings.Repeat("k", kv.MaxKey), Index: math.MaxUint64}
					if i < writes {
						ops[i].Verb, ops[i].Value = kv.CAS, make([]byte, limits.Bytes/writes)
					}
				}
				if err := limits.Check(ops); err != nil {
					t.Fatal(err)
				}
				body, err := json.Marshal(request(ops))
				if err != nil {
					t.Fatal(err)
				}
				if len(body) > maxRequest {
					t.Errorf("the request has %d bytes, Consul allows %d", len(body), maxRequest)
				}
			})
		}
	}
}

package consul

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/hashicorp/consul/api"
	"pgregory.net/rapid"
)

func pairs() *rapid.Generator[[]*api.KVPair] {
	return rapid.SliceOf(rapid.Custom(func(t *rapid.T) *api.KVPair {
		return &api.KVPair{
			Key: rapid.String().Draw(t, "key"), Value: rapid.SliceOf(rapid.Byte()).Draw(t, "value"), Flags: rapid.Uint64().Draw(t, "flags"),
			ModifyIndex: rapid.Uint64().Draw(t, "index"), Session: rapid.String().Draw(t, "session"),
		}
	}))
}

// decodesAlike checks that what Consul makes of an answer is decoded as its client
// does.
func decodesAlike[T any](t *rapid.T, sent T) {
	body, err := json.Marshal(sent)
	if err != nil {
		t.Fatal(err)
	}
	var want, got T
	if err := json.Unmarshal(body, &want); err != nil {
		t.Fatal(err)
	}
	if err := (&answer{body: body}).decode(&got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty()); d != "" {
		t.Fatalf("(-want +got):\n%s", d)
	}
}

func TestAnswersAreDecodedAsTheClientDoes(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		txn := api.TxnResponse{}
		for _, p := range pairs().Draw(t, "pairs") {
			txn.Results = append(txn.Results, &api.TxnResult{KV: p})
		}
		if rapid.Bool().Draw(t, "refused") {
			txn.Errors = api.TxnErrors{{OpIndex: rapid.IntRange(-1, 127).Draw(t, "operation"), What: rapid.String().Draw(t, "what")}}
		}
		decodesAlike(t, txn)
		decodesAlike(t, pairs().Draw(t, "list"))
	})
}

func BenchmarkDecode(b *testing.B) {
	txn := api.TxnResponse{}
	for i := range 16 {
		value := make([]byte, 4000)
		for j := range value {
			value[j] = byte(i*j*7 + j>>3)
		}
		txn.Results = append(txn.Results, &api.TxnResult{KV: &api.KVPair{Key: fmt.Sprint("muster/tasks/p/01/", i), Value: value, ModifyIndex: 12345}})
	}
	body, err := json.Marshal(txn)
	if err != nil {
		b.Fatal(err)
	}
	for name, decode := range map[string]func(any) error{
		"here":   (&answer{body: body}).decode,
		"client": func(into any) error { return json.Unmarshal(body, into) },
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if err := decode(&api.TxnResponse{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

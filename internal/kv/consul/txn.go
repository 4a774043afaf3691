package consul

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/hashicorp/consul/api"

	"github.com/musterhq/muster/internal/kv"
)

// Txn applies operations atomically; see kv.KV.
func (s *KV) Txn(ctx context.Context, ops []kv.Op) ([]kv.Pair, error) {
	if err := limits.Check(ops); err != nil || len(ops) == 0 {
		return nil, err
	}
	reads := !slices.ContainsFunc(ops, func(op kv.Op) bool { return op.Verb != kv.Get })
	// Without a write there is no consensus to go through, and a leader that has
	// been replaced may not know it yet: let it ask.
	found, err := s.txn(ctx, request(ops), api.QueryOptions{RequireConsistent: reads})
	if err != nil {
		return nil, fmt.Errorf("transaction: %w", err)
	}
	if len(found.Errors) > 0 {
		return nil, fmt.Errorf("transaction: %w", refusal(ops, found.Errors))
	}
	pairs, err := results(ops, found.Results)
	if err != nil {
		return nil, fmt.Errorf("transaction: %w", err)
	}
	return pairs, nil
}

// request is a transaction in Consul's words.
func request(ops []kv.Op) api.TxnOps {
	txn := make(api.TxnOps, len(ops))
	for i, op := range ops {
		o := &api.KVTxnOp{Verb: verb(op), Key: op.Key, Index: op.Index}
		if op.Verb == kv.Set || op.Verb == kv.CAS {
			o.Value = pack(op.Value)
		}
		txn[i] = &api.TxnOp{KV: o}
	}
	return txn
}

// txn sends a transaction. If Consul refuses it for one of its operations, that
// is in the answer.
func (s *KV) txn(ctx context.Context, ops api.TxnOps, q api.QueryOptions) (*api.TxnResponse, error) {
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	call, answer := takeAnswer(call)
	_, _, _, err := s.client.Txn().Txn(ops, q.WithContext(call))
	switch {
	case err == nil, answer.status == 0, answer.status == http.StatusOK, answer.status == http.StatusConflict:
		// If there is an error, it was on the way.
	default:
		err = api.StatusError{Code: answer.status, Body: err.Error()}
	}
	found := &api.TxnResponse{}
	if err == nil {
		err = answer.decode(found)
	}
	if err != nil {
		return nil, classify(ctx, err)
	}
	if answer.status == http.StatusConflict && len(found.Errors) == 0 {
		return nil, errors.New("refused without a reason")
	}
	return found, nil
}

// denied is how Consul's words begin for an operation that the token may not do.
// Its own code tells such errors by these words too (acl.IsErrPermissionDenied):
// nothing else of them arrives.
const denied = "Permission denied"

// refusal is the error for a transaction that Consul did not apply. Consul says
// why in words alone; but an operation that checks nothing cannot be in
// conflict, so if one of those failed it was for another reason. Of one that
// checks something the words have to tell: to take a token that may not write for
// a conflict would mean to try again forever.
func refusal(ops []kv.Op, errs api.TxnErrors) error {
	class := kv.ErrConflict
	first := errs[0]
	for _, e := range errs {
		if e.OpIndex < 0 || e.OpIndex >= len(ops) {
			class, first = nil, e
			break
		}
		if strings.HasPrefix(e.What, denied) {
			class, first = nil, e
		}
		switch ops[e.OpIndex].Verb {
		case kv.CAS, kv.DeleteCAS, kv.CheckIndex:
		default:
			class, first = nil, e
		}
	}
	if class == nil {
		return fmt.Errorf("operation %d: %s", first.OpIndex, first.What)
	}
	return fmt.Errorf("operation %d: %s: %w", first.OpIndex, first.What, class)
}

// verb translates an operation. Consul's get fails the whole transaction for a
// key that is not there, hence get-or-empty.
func verb(op kv.Op) api.KVOp {
	switch op.Verb {
	case kv.Get:
		return api.KVGetOrEmpty
	case kv.Set:
		return api.KVSet
	case kv.CAS:
		return api.KVCAS
	case kv.Delete:
		return api.KVDelete
	case kv.DeleteCAS:
		return api.KVDeleteCAS
	case kv.CheckIndex:
		if op.Index == 0 {
			return api.KVCheckNotExists
		}
		return api.KVCheckIndex
	}
	return "" // which Limits.Check has refused
}

// results picks out what kv.KV promises. Consul answers with an entry for
// each operation but deletions, in order.
func results(ops []kv.Op, found api.TxnResults) ([]kv.Pair, error) {
	var pairs []kv.Pair
	for _, op := range ops {
		if op.Verb == kv.Delete || op.Verb == kv.DeleteCAS || len(found) == 0 {
			continue
		}
		p := found[0].KV
		if p == nil || p.Key != op.Key {
			continue // a check that answers with nothing
		}
		found = found[1:]
		switch {
		case op.Verb == kv.CheckIndex, p.ModifyIndex == 0:
		case op.Verb == kv.Get:
			got, err := pair(p)
			if err != nil {
				return nil, err
			}
			pairs = append(pairs, got)
		default:
			pairs = append(pairs, kv.Pair{Key: p.Key, Index: p.ModifyIndex, Session: p.Session})
		}
	}
	return pairs, nil
}

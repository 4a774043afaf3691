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
	// A transaction without writes needs no consensus, and a deposed leader may not know
	// that it was replaced. So a consistent read is requested.
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

// request returns a transaction in Consul's format.
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

// txn sends a transaction. If Consul refuses it because of an operation, the answer says
// so.
func (s *KV) txn(ctx context.Context, ops api.TxnOps, q api.QueryOptions) (*api.TxnResponse, error) {
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	call, answer := takeAnswer(call)
	_, _, _, err := s.client.Txn().Txn(ops, q.WithContext(call))
	switch {
	case err == nil, answer.status == 0, answer.status == http.StatusOK, answer.status == http.StatusConflict:
		// Any error is an error of the connection.
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

// denied is the start of Consul's message for an operation without permission. Consul's
// own code recognizes such errors by this text too (acl.IsErrPermissionDenied), because
// there is no error code.
const denied = "Permission denied"

// refusal returns the error of a transaction that Consul did not apply. Consul gives the
// reason only as text. An operation that checks nothing cannot conflict, so if it failed
// there was another reason. For an operation with a check, the text must be used:
// otherwise a missing permission would look like a conflict, and the caller would retry
// without end.
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

// verb translates an operation. Consul's get fails the whole transaction if the key does
// not exist, so Get is get-or-empty.
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

// results returns the results that kv.KV specifies. Consul answers with an entry for each
// operation except deletions, in order.
func results(ops []kv.Op, found api.TxnResults) ([]kv.Pair, error) {
	var pairs []kv.Pair
	for _, op := range ops {
		if op.Verb == kv.Delete || op.Verb == kv.DeleteCAS || len(found) == 0 {
			continue
		}
		p := found[0].KV
		if p == nil || p.Key != op.Key {
			continue // a check without a result
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

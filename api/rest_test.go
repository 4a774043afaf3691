// Package api_test holds the contract to what it promised, where buf does not
// look.
package api_test

import (
	"os"
	"slices"
	"testing"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	_ "github.com/musterhq/muster/api/muster/v1"
)

// TestREST fails when a REST call that the accepted contract promises (see
// make contract-accept) is no longer there. buf compares messages and methods,
// but does not read the annotations that give a method its path.
func TestREST(t *testing.T) {
	image, err := os.ReadFile("contract.binpb")
	if err != nil {
		t.Fatal(err)
	}
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(image, &set); err != nil {
		t.Fatalf("decode contract.binpb: %v", err)
	}
	promised, err := protodesc.NewFiles(&set)
	if err != nil {
		t.Fatalf("link contract.binpb: %v", err)
	}

	var calls int
	for method := range methods(promised) {
		now, err := protoregistry.GlobalFiles.FindDescriptorByName(method.FullName())
		var kept []*annotations.HttpRule
		if m, ok := now.(protoreflect.MethodDescriptor); err == nil && ok {
			kept = rules(m)
		}
		for _, rule := range rules(method) {
			calls++
			if !slices.ContainsFunc(kept, func(k *annotations.HttpRule) bool { return proto.Equal(k, rule) }) {
				t.Errorf("%s is no longer reached by %v; it is reached by %v", method.FullName(), rule, kept)
			}
		}
	}
	if calls == 0 {
		t.Error("contract.binpb promises no REST call at all, so nothing was compared")
	}
}

// methods yields every method of every service in the files.
func methods(files *protoregistry.Files) func(yield func(protoreflect.MethodDescriptor) bool) {
	return func(yield func(protoreflect.MethodDescriptor) bool) {
		files.RangeFiles(func(file protoreflect.FileDescriptor) bool {
			for i := range file.Services().Len() {
				of := file.Services().Get(i).Methods()
				for j := range of.Len() {
					if !yield(of.Get(j)) {
						return false
					}
				}
			}
			return true
		})
	}
}

// rules returns each way in which a method is reached over REST, one by one.
func rules(method protoreflect.MethodDescriptor) []*annotations.HttpRule {
	rule, _ := proto.GetExtension(method.Options(), annotations.E_Http).(*annotations.HttpRule)
	if rule == nil {
		return nil
	}
	rule = proto.CloneOf(rule)
	all := append([]*annotations.HttpRule{rule}, rule.GetAdditionalBindings()...)
	rule.AdditionalBindings = nil
	return all
}

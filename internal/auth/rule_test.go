package auth_test

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
	_ "github.com/musterhq/muster/api/muster/daemon/v1"
	_ "github.com/musterhq/muster/api/muster/dispatcher/v1"
	_ "github.com/musterhq/muster/api/muster/executor/v1"
	_ "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/auth"
)

// notServed are services that no daemon serves to others: a worker speaks to an
// executor or network plugin, its child, over a socket of their own.
var notServed = map[protoreflect.FullName]bool{"muster.executor.v1.ExecutorService": true, "muster.network.v1.NetworkService": true}

// TestEveryMethodStatesItsRule holds the contract to it. Those who change
// something must say so: what a viewer may call begins with a word that reads.
func TestEveryMethodStatesItsRule(t *testing.T) {
	methods := 0
	protoregistry.GlobalFiles.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			if !strings.HasPrefix(string(service.FullName()), "muster.") || notServed[service.FullName()] {
				continue
			}
			for i := range service.Methods().Len() {
				m := service.Methods().Get(i)
				methods++
				rule, err := auth.RuleOf(m)
				if err != nil {
					t.Error(err)
					continue
				}
				for _, r := range rule.Roles {
					name := string(m.Name())
					reads := strings.HasPrefix(name, "Get") || strings.HasPrefix(name, "List") || name == "Watch" || strings.HasSuffix(name, "Logs")
					if r == authv1.Role_VIEWER && !reads {
						t.Errorf("%s is for viewers, and does not seem to read only", m.FullName())
					}
				}
			}
		}
		return true
	})
	if methods < 40 {
		t.Errorf("there are only %d methods", methods)
	}
}

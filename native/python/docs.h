// The prose of the docstrings; signatures and the options' entries come from the table in arguments.cpp.
#ifndef GCE_PYTHON_DOCS_H_
#define GCE_PYTHON_DOCS_H_

namespace gce_python {

struct FunctionDoc {
  const char* before_options;
  const char* after_options;
};

extern const FunctionDoc kLossDoc;
extern const FunctionDoc kLossAndGradDoc;
extern const FunctionDoc kRowStatsDoc;
extern const FunctionDoc kLossGammaGradDoc;
extern const FunctionDoc kHvpDoc;
extern const FunctionDoc kPartialStatsDoc;
extern const FunctionDoc kShardedLossDoc;
extern const FunctionDoc kBinaryLossDoc;
extern const FunctionDoc kBinaryLossAndGradDoc;

extern const char* const kLossFromLogProbDoc;
extern const char* const kGradWeightDoc;
extern const char* const kGammaGradDoc;

}  // namespace gce_python

#endif  // GCE_PYTHON_DOCS_H_

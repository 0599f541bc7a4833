// DETR's lists on the host, each in one call: targets of images to packed tensors, and matches to pairs.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../common/tensors.h"

namespace dino_kernels {
namespace {

using PackedLists = std::tuple<Tensor, Tensor, Tensor, int64_t, int64_t>;

// Dense int64 [T].
bool is_labels(const Tensor& labels) {
  return labels.is_cpu() && labels.dim() == 1 && labels.scalar_type() == ScalarType::Long &&
         labels.is_contiguous();
}

// Dense float32 [T, 4].
bool is_boxes(const Tensor& boxes, int64_t T) {
  return boxes.is_cpu() && boxes.dim() == 2 && boxes.size(0) == T && boxes.size(1) == 4 &&
         boxes.scalar_type() == ScalarType::Float && boxes.is_contiguous();
}

// NaN is outside. Sums, so that the loop has no branches.
bool are_inside(const float* boxes, int64_t T, double low, double high) {
  int64_t inside = 0;
  for (int64_t i = 0; i < 4 * T; ++i) inside += boxes[i] >= (i % 4 < 2 ? low : 0.0) && boxes[i] <= high;
  return inside == 4 * T;
}

// Returns labels [N], boxes [N, 4] (none if there are none), offsets [B + 1], the largest label and its
// image, both -1 without labels. The image is -2, and the tensors are unfinished, if the caller must look at
// the targets itself: they have another dtype, shape, layout or device, or a wrong value.
PackedLists pack_targets(std::vector<Tensor> labels, std::vector<Tensor> boxes, double low, double high) {
  const auto B = static_cast<int64_t>(labels.size());
  STD_TORCH_CHECK(B > 0 && (boxes.empty() || boxes.size() == labels.size()),
                  "pack_targets: labels must be at least one, and boxes as many or none");
  int64_t N = 0;
  bool usual = true;
  for (size_t b = 0; b < labels.size() && usual; ++b) {
    usual = is_labels(labels[b]) && (boxes.empty() || is_boxes(boxes[b], labels[b].size(0)));
    if (usual) N += labels[b].size(0);
  }
  if (!usual) N = 0;
  const Tensor& like = labels[0];
  Tensor all_labels = new_tensor(like, {N}, ScalarType::Long);
  Tensor all_boxes = new_tensor(like, {boxes.empty() ? 0 : N, 4}, ScalarType::Float);
  Tensor offsets = new_tensor(like, {B + 1}, ScalarType::Long);
  if (!usual) return {all_labels, all_boxes, offsets, -1, -2};
  auto* to_label = static_cast<int64_t*>(all_labels.mutable_data_ptr());
  auto* to_box = static_cast<float*>(all_boxes.mutable_data_ptr());
  auto* starts = static_cast<int64_t*>(offsets.mutable_data_ptr());
  int64_t largest = -1, image = -1;
  starts[0] = 0;
  for (int64_t b = 0; b < B; ++b) {
    const int64_t T = labels[b].size(0);
    starts[b + 1] = starts[b] + T;
    if (T == 0) continue;
    const auto* from = static_cast<const int64_t*>(labels[b].const_data_ptr());
    const auto range = std::minmax_element(from, from + T);
    usual &= *range.first >= 0;
    if (*range.second > largest) largest = *range.second, image = b;
    std::copy(from, from + T, to_label + starts[b]);
    if (boxes.empty()) continue;
    const auto* box = static_cast<const float*>(boxes[b].const_data_ptr());
    usual &= are_inside(box, T, low, high);
    std::copy(box, box + 4 * T, to_box + 4 * starts[b]);
  }
  return {all_labels, all_boxes, offsets, largest, usual ? image : -2};
}

// A part of an int64 vector, with the same memory.
Tensor part_of(const Tensor& whole, int64_t start, int64_t count) {
  const int64_t stride = 1;
  AtenTensorHandle made = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch__reinterpret_tensor(whole.get(), 1, &count, &stride, start, &made));
  return Tensor(made);
}

// The pairs of each set and image of query_idx [G, N]: their queries, ascending, and their targets within the
// image, int64 [R] each, as queries, targets, queries, ...
std::vector<Tensor> matched_pairs(const Tensor& query_idx, const Tensor& offsets) {
  const struct : OnCpu {
    const char* op = "matched_pairs";
  } call;
  STD_TORCH_CHECK(query_idx.dim() == 2 && offsets.numel() > 0, call.op,
                  ": query_idx must be [G, N], offsets [B + 1]");
  const int64_t G = query_idx.size(0), N = query_idx.size(1), B = offsets.numel() - 1;
  const auto* from = contiguous_data<int64_t>(call, "query_idx", query_idx, ScalarType::Long, G * N);
  const auto* starts = contiguous_data<int64_t>(call, "offsets", offsets, ScalarType::Long, B + 1);
  for (int64_t b = 0; b <= B; ++b) {
    STD_TORCH_CHECK((b == 0 ? 0 : starts[b - 1]) <= starts[b] && starts[b] <= N, call.op,
                    ": offsets must ascend from 0 to at most N = ", N);
  }
  const Tensor queries = new_tensor(query_idx, {G * N}, ScalarType::Long);
  const Tensor targets = new_tensor(query_idx, {G * N}, ScalarType::Long);
  auto* to_query = static_cast<int64_t*>(queries.mutable_data_ptr());
  auto* to_target = static_cast<int64_t*>(targets.mutable_data_ptr());
  std::vector<Tensor> pairs;
  pairs.reserve(2 * G * B);
  std::vector<std::pair<int64_t, int64_t>> sorted;
  int64_t count = 0;
  for (int64_t g = 0; g < G; ++g) {
    for (int64_t b = 0; b < B; ++b) {
      sorted.clear();
      for (int64_t n = starts[b]; n < starts[b + 1]; ++n) {
        if (from[g * N + n] >= 0) sorted.emplace_back(from[g * N + n], n - starts[b]);
      }
      std::sort(sorted.begin(), sorted.end());
      const int64_t first = count;
      for (const auto& [query, target] : sorted) {
        to_query[count] = query;
        to_target[count++] = target;
      }
      pairs.push_back(part_of(queries, first, count - first));
      pairs.push_back(part_of(targets, first, count - first));
    }
  }
  return pairs;
}

}  // namespace
}  // namespace dino_kernels

STABLE_TORCH_LIBRARY_IMPL(dino_kernels_native, CPU, m) {
  m.impl("pack_targets", TORCH_BOX(&dino_kernels::pack_targets));
  m.impl("matched_pairs", TORCH_BOX(&dino_kernels::matched_pairs));
}

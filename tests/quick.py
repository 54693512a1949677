"""Which cases of costly tests `make test` runs; `make test-all` runs them all.

Of the tests named here only the listed cases are quick, and every other one is marked
slow; a test with no case is slow as a whole. What is not named here is quick, unless it
is marked slow where it stands. Each capability in the README keeps at least one quick
test: docs/testing.md has the table.
"""

CASES = {
  "test_attention.py::test_memory_is_linear_in_length": [],
  "test_attention.py::test_pieces_equal_dense_attention": [
    *("4-1-both-singletons", "5-2-both-general", "5-2-both-blocks", "8-8-both-one"),
    *("5-8-clean-causal", "4-1-noisy-general", "128-8-both-causal"),
  ],
  "test_batches.py::test_orders_are_those_of_training": ["set"],
  "test_batches.py::test_a_last_block_that_arrays_cut_when_alone": [],
  "test_batches.py::test_a_short_gap_beside_a_long_one": [],
  "test_batches.py::test_together_equal_alone": ["posterior"],
  "test_checkpoint.py::test_damage_is_seen_and_the_step_before_is_used": [
    *("bits", "no meta"),
  ],
  "test_cli.py::test_a_run_that_starts_from_another": [],
  "test_cli.py::test_another_evaluation_is_not_taken_for_one_that_is_finished": [],
  "test_cli.py::test_evaluate_by_token_and_its_errors": [],
  "test_cli.py::test_evaluate_on_another_text": [],
  "test_cli.py::test_sample": ["set"],
  "test_convert.py::test_there_and_back": [
    *("ar_qwen3-bfloat16", "setdlm_dit_adaln-float32", "bd3lm_dit-float16"),
  ],
  "test_convert.py::test_weights_trained_here": [],
  "test_convert_pickled.py::test_training_checkpoints_and_their_ema": ["composer"],
  "test_convert_torch.py::test_logits_of_the_reference_by_pytorch": [],
  "test_convert_torch.py::test_qwen3_of_transformers": [],
  "test_convert_torch.py::test_qwen3_trained_here_runs_in_transformers": [],
  "test_corpora.py::test_lm1b": [],
  "test_counts.py::test_chunks_have_the_figures_of_the_whole": [],
  "test_counts.py::test_counts_vary_less_than_half_as_much_as_levels": [],
  "test_counts.py::test_every_count_and_subset_with_its_weight": ["block"],
  "test_counts.py::test_methods_without_levels_are_as_they_were": ["set"],
  "test_counts.py::test_nelbo_and_evaluate_against_enumeration": ["block-3"],
  "test_counts.py::test_training_by_counts_against_enumeration": [],
  "test_counts.py::test_training_draws_levels_unless_told_otherwise": ["block"],
  "test_decode.py::test_a_threshold_takes_fewer_steps": [],
  "test_decode.py::test_blocks_beyond_the_training_length": [],
  "test_decode.py::test_cached_equals_uncached": ["ar", "general"],
  "test_decode.py::test_cached_equals_uncached_for_random_orders": [],
  "test_decode.py::test_infilling_is_exact_too": ["block-first"],
  "test_decode.py::test_nothing_leaks_from_other_rows_padding_or_empty_slots": [
    "order"
  ],
  "test_decode.py::test_steps_and_ranks": [],
  "test_decode.py::test_text_beyond_the_training_length": [],
  "test_decode.py::test_while_loop_equals_python_loop_and_singles": [],
  "test_decode_rules.py::test_samples_follow_the_rule": ["posterior"],
  "test_decode_rules.py::test_speculation_changes_nothing_where_nothing_is_random": [
    "3-1.7"
  ],
  "test_draws.py::test_inspect_shows_the_masks_of_the_first_step": ["general"],
  "test_error_bars.py::test_nats_of_a_token_are_those_of_a_longer_text": [],
  "test_error_bars.py::test_the_error_of_the_draws_is_their_spread": [],
  "test_error_bars.py::test_tokens_add_up_to_rows": ["set"],
  "test_evaluate.py::test_more_orders_tighten_the_bound_and_stay_above_the_truth": [],
  "test_flash.py::test_a_model_with_the_kernel": [],
  "test_flash.py::test_small_tiles_equal_dense_attention": [
    *("both-singletons", "both-general"),
  ],
  "test_flash.py::test_what_is_kept_for_the_gradient": [],
  "test_fuzz.py::test_a_key_that_is_ignored_is_found": [],
  "test_fuzz.py::test_a_pickle_that_is_executed_is_found": [],
  "test_fuzz.py::test_a_value_that_is_converted_wrongly_is_found": [],
  "test_fuzz.py::test_inputs": [
    *("checkpoints-first", "texts-first", "options-first"),
  ],
  "test_generate.py::test_a_batch_equals_its_rows": ["set"],
  "test_generate.py::test_eos_ends_a_text": ["set"],
  "test_generate.py::test_one_compilation_for_a_bucket_of_shapes": [],
  "test_generate.py::test_speculation_needs_a_drawn_order_and_the_training_length": [],
  "test_generate.py::test_stops": ["set"],
  "test_generate.py::test_watching_changes_nothing": ["ar"],
  "test_golden_decode.py::test_trace": [
    *("setdlm_dit-w8_thr0.2", "setdlm_dit-infill2_full1_l2r_w8_thr0.2"),
    *("mdlm_dit-block8_align0_thr0.2", "ar_dit-greedy"),
    "setdlm_dit_order-w8_trainorder_thr0.2",
    "bd3lm_dit-aligned_prompt_align1_thr0.2",
  ],
  "test_golden_models.py::test_set_diffusion": [
    "setdlm_dit-train",
    "setdlm_qwen3-train",
  ],
  "test_infill.py::test_given_text_stays_as_it_is": ["set"],
  "test_inputs_config.py::test_transformers_leaves_out_the_head_of_a_tied_model": [],
  "test_inputs_options.py::test_settings_of_jax_change_no_figure": ["x64"],
  "test_inputs_options.py::test_texts_on_terminals_pipes_and_in_files": [],
  "test_inputs_options.py::test_training_goes_on_under_other_settings": [],
  "test_inputs_options.py::test_zero_shot_files_do_not_collide": [],
  "test_inputs_paths.py::test_a_checkpoint_in_any_folder": ["brackets"],
  "test_inputs_paths.py::test_a_corpus_of_any_name": ["brackets", "bytes"],
  "test_inputs_paths.py::test_conversion_between_any_folders": ["percent", "bytes"],
  "test_inputs_paths.py::test_training_on_a_full_disk": [],
  "test_inputs_rows.py::test_rows_without_a_token_are_never_generated": [
    *("set", "masked"),
  ],
  "test_inputs_rows.py::test_sampling_from_what_was_converted": [],
  "test_look.py::test_a_forced_text_has_its_likelihood": [],
  "test_look.py::test_a_masked_step_never_holds_every_logit": ["4"],
  "test_look.py::test_masked_steps_equal_those_with_every_logit": ["margin"],
  "test_look.py::test_pieces_change_nothing": [],
  "test_methods.py::test_one_block_of_everything_is_masked_diffusion": [],
  "test_methods.py::test_three_ways_to_go_from_left_to_right": ["dit"],
  "test_objective.py::test_dropout_is_drawn_by_row": [],
  "test_objective.py::test_no_prediction_depends_on_later_tokens": ["set"],
  "test_objective.py::test_remat_and_bfloat16_compute": [],
  "test_objective.py::test_the_backward_pass_keeps_what_takes_a_product": [],
  "test_own_method.py::test_it_trains_and_is_evaluated": [],
  "test_plan.py::test_flops_against_an_unrolled_compile": [],
  "test_plan_tpu.py::test_gradients_go_over_the_links_in_the_dtype_asked_for": [],
  "test_precision.py::test_gradients_are_rounded_if_that_is_asked_for": ["float32"],
  "test_precision.py::test_gradients_of_devices_are_added_up_in_float32": [],
  "test_precision.py::test_logits_of_a_rounded_model_are_not_rounded": [
    *("changes0", "changes2"),
  ],
  "test_prepare.py::test_a_full_disk": [],
  "test_prepare.py::test_the_number_of_workers_does_not_matter": [],
  "test_schedules.py::test_alpha_is_the_probability_of_having_been_revealed": [],
  "test_speculation.py::test_speculation_generates_what_one_token_a_step_does": [
    "24-8"
  ],
  "test_storage_corpora.py::test_a_passing_fault_of_any_file_changes_nothing": ["503"],
  "test_storage_corpora.py::test_commands": [],
  "test_storage_corpora.py::test_credentials_of_each_client_are_asked_for_at_once": [],
  "test_storage_corpora.py::test_losses_are_those_of_the_disk_wherever_it_goes_on": [],
  "test_storage_hub.py::test_a_repository_is_read_as_its_directory_is": [],
  "test_storage_hub.py::test_a_run_starts_from_a_commit": [],
  "test_storage_hub.py::test_commands_by_the_environment": [],
  "test_storage_hub.py::test_sampling_is_that_of_the_directory": [],
  "test_storage_hub.py::test_what_is_there_is_never_written_over": [],
  "test_storage_refusals.py::test_no_network": [],
  "test_storage_runs.py::test_a_damaged_step_is_set_aside_and_a_torn_one_is_not": [],
  "test_train.py::test_a_directory_of_another_run_is_refused": ["change0", "change6"],
  "test_train.py::test_a_diverged_run_keeps_its_last_good_checkpoint": [],
  "test_train.py::test_changing_cadence_mesh_and_length_of_a_run_is_allowed": [],
  "test_train.py::test_fsdp_gathers_weights_and_not_activations": [],
  "test_train.py::test_gradient_variance_is_that_of_single_tokens": [],
  "test_train.py::test_latest_and_best_checkpoints_are_kept": [],
  "test_train.py::test_metrics_are_cut_back_on_resume": [],
  "test_train.py::test_micro_batches_may_change_on_resume": [],
  "test_train.py::test_other_text_is_refused_but_moved_text_is_not": [],
  "test_train.py::test_results_do_not_depend_on_mesh_or_micro_batches": ["changes0"],
  "test_train.py::test_step_is_the_gradient_of_the_mean": [],
  "test_weights.py::test_other_shapes_are_refused": [],
  "test_weights.py::test_parts_that_only_one_side_has": [],
}


def is_slow(file: str, test: str, case: str | None) -> bool:
  """Whether a case of a test, such as "set" or None, is left to `make test-all`."""
  cases = CASES.get(f"{file}::{test}")
  return cases is not None and case not in cases
